//! Tensors of a checkpoint: ranges of a storage, described by an offset, sizes and strides that are checked before
//! anything is read.

use std::io::{Read, Seek};

use half::{bf16, f16};

use super::archive::{Archive, ArchiveError};
use super::globals::{ElementType, Global, Meaning};
use super::value::{Id, Value, Values};

/// Most dimensions; PyTorch's own checkpoints have up to five.
const MOST_DIMENSIONS: usize = 16;

/// Numbers that lie in an entry of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage {
    /// Name of the entry, below `data/`.
    pub key: Box<str>,
    /// Type of the numbers, if the storage has one.
    pub element: Option<ElementType>,
    /// Bytes it claims.
    pub bytes: usize,
}

/// A tensor and where its numbers lie. Every number of it is inside its storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    key: Box<str>,
    element: ElementType,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
    count: usize,
}

/// How many numbers the shape has; `None` if they cannot be counted.
fn count(shape: &[usize]) -> Option<usize> {
    // A dimension of 0 leaves nothing to count, whatever the others are.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1_usize, |count, &size| count.checked_mul(size))
}

/// How many numbers of the storage lie from the first to the last one of the tensor, both included.
fn reach(shape: &[usize], strides: &[usize]) -> Option<usize> {
    shape
        .iter()
        .zip(strides)
        .try_fold(1_usize, |reach, (&size, &stride)| reach.checked_add(size.saturating_sub(1).checked_mul(stride)?))
}

impl StoredTensor {
    /// From `(storage, offset, sizes, strides, requires_grad, hooks[, element type])`, as PyTorch pickles it; `typed` if
    /// the element type is an argument.
    pub(super) fn from_arguments(values: &Values, arguments: &[Id], typed: bool) -> Result<Self, String> {
        let (&[storage, offset, shape, strides, _, _, ref rest @ ..], true) = (arguments, arguments.len() <= 8) else {
            return Err(format!("a tensor is made of {} values", arguments.len()));
        };
        let Value::Storage(storage) = values.get(storage) else {
            return Err(format!("a tensor is made of {}", values.get(storage).kind()));
        };
        let written = match (typed, rest.first().map(|&id| values.get(id))) {
            (true, Some(Value::Global(Global { meaning: Meaning::Element(element), .. }))) => Some(*element),
            (true, _) => None,
            (false, _) => storage.element,
        };
        let Some(element) = written else {
            return Err("a tensor has no element type".into());
        };
        let size = |id: Id| values.int(id).and_then(|number| usize::try_from(number).ok());
        let sizes = |id: Id| -> Option<Vec<usize>> { values.tuple(id)?.iter().map(|&id| size(id)).collect() };
        match (size(offset), sizes(shape), sizes(strides)) {
            (Some(offset), Some(shape), Some(strides)) => Self::new(storage, element, offset, shape, strides),
            _ => Err("a size, stride or offset of a tensor is no number of values".into()),
        }
    }

    /// Checks that the tensor lies inside `storage`; offset and strides count numbers of type `element`.
    fn new(
        storage: &Storage,
        element: ElementType,
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    ) -> Result<Self, String> {
        if shape.len() != strides.len() || shape.len() > MOST_DIMENSIONS {
            return Err(format!("a tensor has {} sizes and {} strides", shape.len(), strides.len()));
        }
        let Some(count) = count(&shape) else {
            return Err(format!("a tensor claims the shape {shape:?}"));
        };
        let end = reach(&shape, &strides).and_then(|reach| reach.checked_add(offset));
        let held = storage.bytes / element.bytes();
        if count > 0 && end.is_none_or(|end| end > held) {
            return Err(format!(
                "a tensor of shape {shape:?}, strides {strides:?} and offset {offset} does not fit its storage of {held} numbers"
            ));
        }
        Ok(Self { key: storage.key.clone(), element, offset, shape, strides, count })
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Type of its numbers in the file.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// How many numbers it has.
    pub fn count(&self) -> usize {
        self.count
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// The numbers as f32, row-major; `start` is where the storage begins in the file. `None` for a type that is no
    /// floating-point type of 16 bits or more.
    pub(super) fn read<R: Read + Seek>(
        &self,
        archive: &mut Archive<R>,
        start: u64,
    ) -> Result<Option<Vec<f32>>, ArchiveError> {
        let Some(decode) = decoder(self.element) else { return Ok(None) };
        if self.count == 0 {
            return Ok(Some(Vec::new()));
        }
        let bytes = self.element.bytes();
        let mut numbers = |first: usize, length: usize| archive.read(start + (first * bytes) as u64, length * bytes);
        let (width, stride) = (self.shape.last().map_or(1, |&size| size), self.strides.last().map_or(1, |&size| size));
        let row = |values: &mut Vec<f32>, bytes_of: &[u8]| {
            values.extend((0..width).map(|i| decode(&bytes_of[i * stride * bytes..][..bytes])));
        };
        let mut values = Vec::with_capacity(self.count);
        let whole = reach(&self.shape, &self.strides).unwrap_or(usize::MAX);
        let of_row = (width - 1) * stride + 1;
        // What is mostly the tensor itself is read at once; what has wide gaps, in pieces, so that a slice of a large
        // storage costs no more memory than its numbers.
        if whole <= self.count.saturating_mul(2) {
            let all = numbers(self.offset, whole)?;
            self.rows().for_each(|first| row(&mut values, &all[first * bytes..]));
        } else if of_row <= width.saturating_mul(2) {
            for first in self.rows() {
                row(&mut values, &numbers(self.offset + first, of_row)?);
            }
        } else {
            for first in self.rows() {
                for i in 0..width {
                    values.push(decode(&numbers(self.offset + first + i * stride, 1)?));
                }
            }
        }
        Ok(Some(values))
    }

    /// Where each run along the last dimension begins, counted from the tensor's first number.
    fn rows(&self) -> impl Iterator<Item = usize> + '_ {
        let outer = self.shape.len().saturating_sub(1);
        let rows = self.shape[..outer].iter().product();
        (0..rows).map(move |row: usize| {
            let dimensions = self.shape[..outer].iter().zip(&self.strides).rev();
            dimensions.fold((row, 0), |(row, first), (&size, &stride)| (row / size, first + row % size * stride)).1
        })
    }
}

/// Reads one number.
fn decoder(element: ElementType) -> Option<fn(&[u8]) -> f32> {
    fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
        std::array::from_fn(|i| bytes[i])
    }
    match element {
        ElementType::F64 => Some(|bytes| f64::from_le_bytes(array(bytes)) as f32),
        ElementType::F32 => Some(|bytes| f32::from_le_bytes(array(bytes))),
        ElementType::F16 => Some(|bytes| f16::from_le_bytes(array(bytes)).to_f32()),
        ElementType::Bf16 => Some(|bytes| bf16::from_le_bytes(array(bytes)).to_f32()),
        _ => None,
    }
}
