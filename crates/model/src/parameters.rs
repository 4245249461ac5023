//! Weights as a flat list of named f32 buffers: what optimisers, checkpoints and files work on.
//!
//! A network owns no weights. [`Parameters::bind`] puts them on a device as leaf tensors for one pass,
//! the network takes its tensors from the [`Bound`] set by name, and [`Bound::gradients`] returns one
//! gradient slice per parameter in the same order.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use half::f16;
use mambo_kernels::linear::{Matrix, Panels};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, View};

use crate::ops::LinearWeight;
use crate::random;
use crate::weights::{Weights, WeightsError};

/// What happens to a parameter while training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Trained with weight decay (matrices).
    Decayed,
    /// Trained without weight decay (biases, norms, `A_log`, `D`, `dt_bias`, embeddings).
    Free,
    /// Never trained, e.g. a codec's centroids.
    Buffer,
}

/// One named tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Name as in the published checkpoint where there is one.
    pub name: String,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Trained or not, decayed or not.
    pub role: Role,
    /// Values, row-major.
    pub values: Vec<f32>,
}

/// A weight file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: cannot write the weights: {source}; is the folder there and the disk not full?")]
pub struct WriteError {
    /// File.
    pub path: PathBuf,
    /// Cause.
    pub source: std::io::Error,
}

/// Number format of a weight file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Four bytes a value, exact.
    F32,
    /// Two bytes a value.
    F16,
    /// One byte a value of a matrix whose rows [`INT8_GROUP`] divides, with factors `NAME.scale` (f16) as
    /// [`Weights::quantised`] reads them; anything else as [`Precision::F16`].
    Int8,
}

/// Values of a row that share a factor in [`Precision::Int8`].
pub const INT8_GROUP: usize = 32;

/// Where first values come from: a seed, or nowhere when a file will fill them.
pub struct Initialiser {
    rng: Option<ChaCha8Rng>,
}

impl Initialiser {
    /// Draws from the stream `init` of `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self { rng: Some(random::stream(seed, "init", 0)) }
    }

    /// No values: makes a parameter list for [`Parameters::load`] to fill, without drawing or allocating, so
    /// that sizes in a wrong file cost nothing before they are compared with its tensors.
    pub fn blank() -> Self {
        Self { rng: None }
    }

    /// Uniform in `[low, high)`.
    pub fn uniform(&mut self, count: usize, low: f32, high: f32) -> Vec<f32> {
        self.draw(count, |rng| low + (high - low) * random::uniform(rng))
    }

    /// Normal around zero.
    pub fn normal(&mut self, count: usize, deviation: f32) -> Vec<f32> {
        self.draw(count, |rng| random::normal(rng) * deviation)
    }

    /// PyTorch's default for linear layers and convolutions: uniform within 1/sqrt(fan-in).
    pub fn fan_in(&mut self, count: usize, fan_in: usize) -> Vec<f32> {
        let bound = 1.0 / (fan_in as f32).sqrt();
        self.uniform(count, -bound, bound)
    }

    /// The same for a layer that ends in the residual stream, scaled by 1/sqrt(`residuals`), the number of residual
    /// additions of the network.
    pub fn for_residual(&mut self, count: usize, fan_in: usize, residuals: usize) -> Vec<f32> {
        let scale = 1.0 / (residuals as f32).sqrt();
        let mut values = self.fan_in(count, fan_in);
        values.iter_mut().for_each(|value| *value *= scale);
        values
    }

    fn draw(&mut self, count: usize, one: impl Fn(&mut ChaCha8Rng) -> f32) -> Vec<f32> {
        match &mut self.rng {
            Some(rng) => (0..count).map(|_| one(rng)).collect(),
            None => Vec::new(),
        }
    }

    /// Zeros.
    pub fn zeros(&mut self, count: usize) -> Vec<f32> {
        self.draw(count, |_| 0.0)
    }

    /// The identity matrix of `width`.
    pub fn identity(&mut self, width: usize) -> Vec<f32> {
        let mut out = self.zeros(width.saturating_mul(width));
        out.iter_mut().step_by(width + 1).for_each(|value| *value = 1.0);
        out
    }
}

/// All weights of a network in a fixed order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parameters {
    list: Vec<Parameter>,
    index: BTreeMap<String, usize>,
}

impl Parameters {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a parameter; no values at all mean that a file will bring them.
    ///
    /// # Panics
    /// When the name is taken or the values do not fill the shape.
    pub fn push(&mut self, name: impl Into<String>, shape: &[usize], role: Role, values: Vec<f32>) {
        let name = name.into();
        let count = shape.iter().fold(1, |count: usize, &size| count.saturating_mul(size));
        assert!(values.is_empty() || values.len() == count, "`{name}` must fill {shape:?}");
        let before = self.index.insert(name.clone(), self.list.len());
        assert!(before.is_none(), "parameter `{name}` is defined twice");
        self.list.push(Parameter { name, shape: shape.to_vec(), role, values });
    }

    /// The parameters in their fixed order.
    pub fn list(&self) -> &[Parameter] {
        &self.list
    }

    /// The parameters in their fixed order, to change values.
    pub fn list_mut(&mut self) -> &mut [Parameter] {
        &mut self.list
    }

    /// The parameter called `name`, if there is one.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.index.get(name).map(|&at| &self.list[at])
    }

    /// The values of `name`, to change them in place.
    pub fn values_mut(&mut self, name: &str) -> Option<&mut [f32]> {
        self.index.get(name).map(|&at| self.list[at].values.as_mut_slice())
    }

    /// Number of trained values.
    pub fn trained_count(&self) -> usize {
        self.list.iter().filter(|p| p.role != Role::Buffer).map(|p| p.values.len()).sum()
    }

    /// Leaf tensors for one pass. On an autodiff device, trained parameters require gradients.
    pub fn bind(&self, device: &Device) -> Bound {
        self.bind_some(device, |_| true)
    }

    /// The same for the parameters that `wanted` names: a pass through a part of the network.
    pub fn bind_some(&self, device: &Device, wanted: impl Fn(&str) -> bool) -> Bound {
        let leaf = |parameter: &Parameter| {
            let data = TensorData::new(parameter.values.clone(), [parameter.values.len()]);
            let leaf = Tensor::<1>::from_data(data, device);
            if device.is_autodiff() && parameter.role != Role::Buffer { leaf.require_grad() } else { leaf }
        };
        let leaves = self
            .list
            .iter()
            .map(|parameter| Leaf {
                shape: parameter.shape.clone(),
                tensor: wanted(&parameter.name).then(|| leaf(parameter)),
                packed: None,
            })
            .collect();
        Bound { leaves, index: self.index.clone(), device: device.clone() }
    }

    /// For a network that is run again and again with these weights: its matrices are packed for products instead of lying there
    /// as tensors. `side` says of a parameter whether it is one, `[inputs, outputs]` or turned. No gradients, so on a device without
    /// any.
    pub fn bind_packed(&self, device: &Device, side: impl Fn(&Parameter) -> Option<Side>) -> Bound {
        let sides: BTreeMap<&str, Side> =
            self.list.iter().filter_map(|parameter| Some((parameter.name.as_str(), side(parameter)?))).collect();
        let mut bound = self.bind_some(device, |name| !sides.contains_key(name));
        for (parameter, leaf) in self.list.iter().zip(&mut bound.leaves) {
            let Some(side) = sides.get(parameter.name.as_str()) else { continue };
            let [rows, columns] = parameter.shape[..] else { panic!("`{}` is no matrix", parameter.name) };
            let matrix = Matrix::new(&parameter.values, rows, columns);
            leaf.packed = Some(Arc::new(Panels::new(if *side == Side::Turned { matrix.turned() } else { matrix })));
        }
        bound
    }

    /// Gradients of nothing, for [`Bound::add_gradients`]: zeros, empty for buffers.
    pub fn no_gradients(&self) -> Vec<Vec<f32>> {
        let of = |parameter: &Parameter| match parameter.role {
            Role::Buffer => Vec::new(),
            _ => vec![0.0; parameter.values.len()],
        };
        self.list.iter().map(of).collect()
    }

    /// Writes all parameters to one safetensors file (beside, synced, then renamed into place).
    /// `note` is free text for the header, e.g. the configuration as JSON.
    pub fn save(&self, path: &Path, precision: Precision, note: &str) -> Result<(), WriteError> {
        let tensors = self.list.iter().map(|p| (p.name.as_str(), p.shape.as_slice(), p.values.as_slice()));
        write_floats(path, tensors, precision, note).map_err(|source| WriteError { path: path.to_owned(), source })
    }

    /// Overwrites all values from a safetensors file (f32, f16, bf16 or int8 with factors); names and shapes must match.
    pub fn load(&mut self, path: &Path) -> Result<(), WeightsError> {
        let file = Weights::open(path)?;
        for parameter in &mut self.list {
            parameter.values = match parameter.shape[..] {
                [rows, columns] if file.is_int8(&parameter.name) => {
                    let matrix = file.quantised(&parameter.name, rows, columns)?;
                    (0..rows).flat_map(|row| matrix.row(row)).collect()
                }
                _ => file.f32(&parameter.name, &parameter.shape)?,
            };
        }
        file.finish()
    }
}

/// Values as they are written: encoded when their turn comes, so that f32 and f16 are never in memory twice.
struct Encoded<'a> {
    shape: Vec<usize>,
    values: Cow<'a, [f32]>,
    element: Dtype,
}

impl<'a> Encoded<'a> {
    /// A tensor as one or two that are written for it.
    fn all(name: &str, shape: &[usize], values: &'a [f32], precision: Precision) -> Vec<(String, Self)> {
        let one = |element: Dtype| {
            vec![(name.to_owned(), Self { shape: shape.to_vec(), values: Cow::Borrowed(values), element })]
        };
        match (precision, shape) {
            (Precision::F32, _) => one(Dtype::F32),
            (Precision::Int8, &[rows, columns]) if columns > 0 && columns.is_multiple_of(INT8_GROUP) => {
                let (whole, scales) = in_groups(values);
                let factors = vec![rows, columns / INT8_GROUP];
                vec![
                    (name.to_owned(), Self { shape: shape.to_vec(), values: Cow::Owned(whole), element: Dtype::I8 }),
                    (format!("{name}.scale"), Self { shape: factors, values: Cow::Owned(scales), element: Dtype::F16 }),
                ]
            }
            (Precision::F16 | Precision::Int8, _) => one(Dtype::F16),
        }
    }
}

/// Whole numbers of -127 to 127, and the factor of each [`INT8_GROUP`] of them.
fn in_groups(values: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let scale = |group: &[f32]| {
        let largest = group.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        // As it will be read.
        f16::from_f32(largest / 127.0).to_f32()
    };
    let scales: Vec<f32> = values.chunks(INT8_GROUP).map(scale).collect();
    let whole = |(group, &scale): (&[f32], &f32)| -> Vec<f32> {
        // A group of zeros has the factor zero.
        let factor = if scale > 0.0 { scale.recip() } else { 0.0 };
        group.iter().map(|value| (value * factor).round().clamp(-127.0, 127.0)).collect()
    };
    (values.chunks(INT8_GROUP).zip(&scales).flat_map(whole).collect(), scales)
}

impl View for Encoded<'_> {
    fn dtype(&self) -> Dtype {
        self.element
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.element {
            Dtype::I8 => self.values.iter().map(|&value| (value as i8).cast_unsigned()).collect(),
            Dtype::F16 => self.values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
            _ => Cow::Borrowed(bytemuck::cast_slice(&self.values)),
        }
    }

    fn data_len(&self) -> usize {
        let bytes = match self.element {
            Dtype::I8 => 1,
            Dtype::F16 => 2,
            _ => 4,
        };
        bytes * self.values.len()
    }
}

/// One key only: the header is written from a hash map, whose order would change the bytes.
fn header(note: &str) -> HashMap<String, String> {
    HashMap::from([("mambo".to_owned(), note.to_owned())])
}

/// Writes named tensors (name, shape, row-major values) as safetensors, atomically, with `note` under the header's key
/// `mambo`.
pub fn write_floats<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (impl AsRef<str> + Ord + Display, &'a [usize], &'a [f32])>,
    precision: Precision,
    note: &str,
) -> std::io::Result<()> {
    let encoded =
        tensors.into_iter().flat_map(|(name, shape, values)| Encoded::all(name.as_ref(), shape, values, precision));
    let write = |beside: &Path| {
        // The library makes its files private; this one shall be like any other.
        let permissions = File::create(beside)?.metadata()?.permissions();
        safetensors::serialize_to_file(encoded, Some(header(note)), beside).map_err(std::io::Error::other)?;
        std::fs::set_permissions(beside, permissions)
    };
    replace(path, write)
}

/// Writes `bytes` so that a crash leaves either the old file or the new one: beside, fsync, rename. What is there and no
/// plain file, a pipe or a device, is written to as it is: a rename would put a file in its place.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if path.metadata().is_ok_and(|there| !there.is_file()) {
        return std::fs::write(path, bytes);
    }
    replace(path, |beside| File::create(beside)?.write_all(bytes))
}

/// Lets `write` make a file beside `path`, syncs it and renames it into place.
fn replace(path: &Path, write: impl FnOnce(&Path) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let beside = path.with_file_name(name);
    write(&beside)?;
    File::options().write(true).open(&beside)?.sync_all()?;
    std::fs::rename(&beside, path)?;
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        // The rename itself must survive a crash too; some file systems refuse to sync a folder.
        if let Ok(handle) = File::open(folder) {
            let _ = handle.sync_all();
        }
    }
    Ok(())
}

struct Leaf {
    shape: Vec<usize>,
    tensor: Option<Tensor<1>>,
    packed: Option<Arc<Panels>>,
}

/// How the matrix of a linear layer lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `[inputs, outputs]`.
    Plain,
    /// `[outputs, inputs]`.
    Turned,
}

/// Parameters as tensors for one forward (and backward) pass.
pub struct Bound {
    leaves: Vec<Leaf>,
    index: BTreeMap<String, usize>,
    device: Device,
}

impl Bound {
    /// The tensor called `name`.
    ///
    /// # Panics
    /// When there is none, it was not bound or its rank is not `D`: a network and its parameter list must agree.
    pub fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        let at = self.index.get(name).unwrap_or_else(|| panic!("no parameter `{name}`"));
        let leaf = &self.leaves[*at];
        let shape: [usize; D] = leaf
            .shape
            .as_slice()
            .try_into()
            .unwrap_or_else(|_| panic!("`{name}` has rank {}, asked for {D}", leaf.shape.len()));
        leaf.tensor.clone().unwrap_or_else(|| panic!("`{name}` was not bound")).reshape(shape)
    }

    /// The matrix of a linear layer called `name`, packed if it was bound so.
    ///
    /// # Panics
    /// As [`Bound::tensor`].
    pub fn weight(&self, name: &str, side: Side) -> LinearWeight {
        match (self.index.get(name).and_then(|at| self.leaves[*at].packed.clone()), side) {
            (Some(panels), _) => LinearWeight::Packed(panels),
            (None, Side::Plain) => LinearWeight::Plain(self.tensor(name)),
            (None, Side::Turned) => LinearWeight::Turned(self.tensor(name)),
        }
    }

    /// The device of all tensors.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// One gradient per parameter, in the order of the list; zeros where nothing flowed, empty for buffers.
    pub fn gradients(&self, mut gradients: Gradients) -> Vec<Vec<f32>> {
        let of = |leaf: &Leaf| match leaf.trained() {
            Some(tensor) => taken(tensor, &mut gradients).unwrap_or_else(|| vec![0.0; leaf.shape.iter().product()]),
            None => Vec::new(),
        };
        self.leaves.iter().map(of).collect()
    }

    /// Adds the gradients of what was bound to `sums`, one per parameter in the order of the list.
    pub fn add_gradients(&self, mut gradients: Gradients, sums: &mut [Vec<f32>]) {
        for (leaf, sum) in self.leaves.iter().zip(sums) {
            if let Some(more) = leaf.trained().and_then(|tensor| taken(tensor, &mut gradients)) {
                sum.iter_mut().zip(more).for_each(|(sum, value)| *sum += value);
            }
        }
    }
}

impl Leaf {
    fn trained(&self) -> Option<&Tensor<1>> {
        self.tensor.as_ref().filter(|tensor| tensor.is_require_grad())
    }
}

/// The gradient of a leaf, if any flowed.
fn taken(leaf: &Tensor<1>, gradients: &mut Gradients) -> Option<Vec<f32>> {
    let gradient = leaf.grad_remove(gradients)?;
    Some(gradient.into_data().try_into_vec::<f32>().expect("parameters are f32, so gradients are"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Parameters {
        let mut parameters = Parameters::new();
        parameters.push("a", &[2, 2], Role::Decayed, vec![1.0, 2.0, 3.0, 4.0]);
        parameters.push("b", &[2], Role::Buffer, vec![0.5, -0.5]);
        parameters
    }

    /// A link to the device, so that a failure of this test breaks no device.
    #[cfg(unix)]
    #[test]
    fn a_device_is_written_to_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        write_atomically(&link, b"gone").unwrap();
        assert_eq!(std::fs::read_link(&link).unwrap(), Path::new("/dev/null"));
        let plain = folder.path().join("plain");
        write_atomically(&plain, b"old").unwrap();
        write_atomically(&plain, b"new").unwrap();
        assert_eq!(std::fs::read(&plain).unwrap(), b"new");
        assert_eq!(folder.path().read_dir().unwrap().count(), 2);
    }

    #[test]
    fn gradients_come_back_by_position() {
        let parameters = two();
        let bound = parameters.bind(&Device::flex().autodiff());
        let product = bound.tensor::<2>("a").matmul(bound.tensor::<1>("b").reshape([2, 1]));
        let gradients = bound.gradients(product.sum().backward());
        assert_eq!(gradients, vec![vec![0.5, -0.5, 0.5, -0.5], vec![]]);
    }

    #[test]
    fn int8_keeps_every_value_within_half_a_step_of_its_group() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let (rows, columns) = (3, 2 * INT8_GROUP);
        // Groups of very different size, one of zeros.
        let size = |group: usize| [0.0, 1e-3, 0.1, 1.0, 7.0, 300.0][group];
        let value = |n: usize| size(n / INT8_GROUP) * (n as f32 * 0.7).sin();
        let mut parameters = Parameters::new();
        parameters.push("matrix", &[rows, columns], Role::Decayed, (0..rows * columns).map(value).collect());
        parameters.push("bias", &[INT8_GROUP], Role::Free, (0..INT8_GROUP).map(|n| n as f32 / 64.0).collect());
        parameters.save(&path, Precision::Int8, "{}").unwrap();
        let mut read = parameters.clone();
        read.list_mut().iter_mut().for_each(|parameter| parameter.values.fill(9.0));
        read.load(&path).unwrap();
        assert_eq!(read.get("bias"), parameters.get("bias"));
        let pairs = || parameters.list()[0].values.iter().zip(&read.list()[0].values);
        for (n, (wanted, got)) in pairs().enumerate() {
            // Half a step, and what the factor loses in f16.
            let most = size(n / INT8_GROUP) / 127.0 * 0.51 + 127.0 * 6e-8;
            assert!((wanted - got).abs() <= most, "{n}: {wanted} {got}");
        }
        assert!(pairs().any(|(wanted, got)| wanted != got));
        let bytes = std::fs::metadata(&path).unwrap().len();
        assert!(bytes < (rows * columns + 2 * (rows * 2 + INT8_GROUP) + 500) as u64, "{bytes}");
        // Written again the values stay.
        let again = folder.path().join("again.safetensors");
        read.save(&again, Precision::Int8, "{}").unwrap();
        let mut twice = parameters.clone();
        twice.load(&again).unwrap();
        assert_eq!(twice, read);
    }

    #[test]
    fn files_round_trip_and_wrong_shapes_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let parameters = two();
        for precision in [Precision::F32, Precision::F16] {
            parameters.save(&path, precision, "{}").unwrap();
            let mut other = parameters.clone();
            other.values_mut("a").unwrap().fill(0.0);
            other.load(&path).unwrap();
            assert_eq!(other, parameters);
        }
        let mut wrong = Parameters::new();
        wrong.push("a", &[4], Role::Free, vec![0.0; 4]);
        let message = wrong.load(&path).unwrap_err().to_string();
        assert!(message.contains("tensor a") && message.contains("[2, 2]") && message.contains("[4]"), "{message}");
    }
}
