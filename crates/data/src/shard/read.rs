//! Opens a shard as a memory map after checking all of it.

use super::{HEADER_KEY, LAYOUT, ShardHeader, ShardTrack};
use crate::error::DataError;
use half::f16;
use mambo_model::clock::{CYCLE_TICKS, is_position};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// An open shard. All accessors are infallible because [`Shard::open`] checked every value.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    map: Mmap,
    header: ShardHeader,
    items: usize,
    codes: Range<usize>,
    clock: Range<usize>,
    lengths: Range<usize>,
    track: Range<usize>,
    segment: Range<usize>,
    version: Range<usize>,
    caption_offsets: Range<usize>,
    caption_index: Range<usize>,
    text_offsets: Range<usize>,
    text_states: Range<usize>,
}

/// One item of a shard, borrowed from the map.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// Where it comes from.
    pub track: &'a ShardTrack,
    /// Which piece of the track.
    pub segment: u32,
    /// Which augmentation; 0 is unaltered.
    pub version: u32,
    /// Frames in use.
    pub length: usize,
    /// Row-major `[K, T]`, T as in the header; zero after `length` frames.
    pub codes_kt: &'a [u16],
    /// Beat clock of each frame, `[T]`; "no beat" after `length` frames.
    pub clock_t: &'a [u16],
    /// Indices of its captions in the shard's header; at least one.
    pub captions: &'a [u32],
}

/// Maps a file for reading.
#[allow(unsafe_code)]
fn map_file(path: &Path) -> Result<Mmap, DataError> {
    // A pipe would be waited for, and a directory or device cannot be mapped.
    if !std::fs::metadata(path).map_err(DataError::io(path, "open the shard"))?.is_file() {
        return Err(DataError::format(path, "a Mambo shard (safetensors)", "something that is not a plain file"));
    }
    let file = std::fs::File::open(path).map_err(DataError::io(path, "open the shard"))?;
    // SAFETY: the map is read-only and private to this process. Shards are replaced by renaming, never
    // rewritten in place, so the mapped file keeps its content and length; should someone truncate it
    // by hand, the system ends the process (SIGBUS) rather than giving wrong data.
    unsafe { Mmap::map(&file) }.map_err(DataError::io(path, "map the shard"))
}

struct Checker<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    tensors: SafeTensors<'a>,
}

impl<'a> Checker<'a> {
    fn fail(&self, expected: impl Into<String>, found: impl Into<String>) -> DataError {
        DataError::format(self.path, expected, found)
    }

    /// Byte range of a tensor of the given type and shape (`None`: any length).
    fn tensor(&self, name: &str, dtype: Dtype, shape: &[Option<usize>]) -> Result<Range<usize>, DataError> {
        let view =
            self.tensors.tensor(name).map_err(|error| self.fail(format!("a tensor `{name}`"), error.to_string()))?;
        let fits = view.shape().len() == shape.len()
            && view.shape().iter().zip(shape).all(|(found, wanted)| wanted.is_none_or(|wanted| wanted == *found));
        if view.dtype() != dtype || !fits {
            return Err(self.fail(
                format!("tensor `{name}` of type {dtype} and shape {shape:?}"),
                format!("type {} and shape {:?}", view.dtype(), view.shape()),
            ));
        }
        let start = view.data().as_ptr() as usize - self.bytes.as_ptr() as usize;
        Ok(start..start + view.data().len())
    }

    fn values<T: bytemuck::Pod>(&self, name: &str, range: &Range<usize>) -> Result<&'a [T], DataError> {
        bytemuck::try_cast_slice(&self.bytes[range.clone()])
            .map_err(|error| self.fail(format!("tensor `{name}` at an aligned place"), error.to_string()))
    }

    /// Offsets rise strictly from 0 to `end`.
    fn check_offsets(&self, name: &str, offsets: &[u32], end: usize) -> Result<(), DataError> {
        let rising = offsets.windows(2).all(|pair| pair[0] < pair[1]);
        if offsets.first() != Some(&0) || offsets.last().map(|&last| last as usize) != Some(end) || !rising {
            return Err(self.fail(format!("`{name}` rising from 0 to {end}"), "other offsets"));
        }
        Ok(())
    }

    fn check_below(&self, name: &str, values: &[u32], limit: usize) -> Result<(), DataError> {
        match values.iter().find(|&&value| value as usize >= limit) {
            Some(value) => Err(self.fail(format!("values below {limit} in `{name}`"), value.to_string())),
            None => Ok(()),
        }
    }
}

fn read_header(path: &Path, bytes: &[u8]) -> Result<ShardHeader, DataError> {
    let fail = |found: String| DataError::format(path, "a Mambo shard (safetensors)", found);
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| fail(error.to_string()))?;
    let text = metadata
        .metadata()
        .as_ref()
        .and_then(|entries| entries.get(HEADER_KEY))
        .ok_or_else(|| fail(format!("no metadata entry `{HEADER_KEY}`; write shards with `mambo prepare`")))?;
    let header: ShardHeader = serde_json::from_str(text).map_err(|error| fail(format!("header: {error}")))?;
    let codec = &header.spec.codec;
    if header.layout != LAYOUT {
        return Err(fail(format!("layout {}, this program reads {LAYOUT}; run `mambo prepare` again", header.layout)));
    }
    if codec.levels == 0 || header.spec.frames == 0 || header.spec.text_width == 0 || codec.cardinality == 0 {
        return Err(fail("a size of zero in the header".into()));
    }
    Ok(header)
}

impl Shard {
    /// Opens and checks a shard.
    ///
    /// # Errors
    /// The file cannot be read or breaks a rule of the layout, which is named.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let map = map_file(path)?;
        let header = read_header(path, &map)?;
        let tensors = SafeTensors::deserialize(&map)
            .map_err(|error| DataError::format(path, "a Mambo shard (safetensors)", error.to_string()))?;
        let check = Checker { path, bytes: &map, tensors };
        let spec = &header.spec;

        let lengths = check.tensor("lengths", Dtype::U32, &[None])?;
        let items = lengths.len() / 4;
        if items == 0 {
            return Err(check.fail("at least one item", "none"));
        }
        let some = Some(items);
        let codes = check.tensor("codes", Dtype::U16, &[some, Some(spec.codec.levels), Some(spec.frames)])?;
        let clock = check.tensor("clock", Dtype::U16, &[some, Some(spec.frames)])?;
        let track = check.tensor("track", Dtype::U32, &[some])?;
        let segment = check.tensor("segment", Dtype::U32, &[some])?;
        let version = check.tensor("version", Dtype::U32, &[some])?;
        let caption_offsets = check.tensor("caption_offsets", Dtype::U32, &[Some(items + 1)])?;
        let caption_index = check.tensor("caption_index", Dtype::U32, &[None])?;
        let text_offsets = check.tensor("text_offsets", Dtype::U32, &[Some(header.captions.len() + 1)])?;
        let text_states = check.tensor("text_states", Dtype::F16, &[None, Some(spec.text_width)])?;

        let length_values: &[u32] = check.values("lengths", &lengths)?;
        if let Some(length) = length_values.iter().find(|&&length| length == 0 || length as usize > spec.frames) {
            return Err(check.fail(format!("items of 1 to {} frames", spec.frames), length.to_string()));
        }
        check.check_below("track", check.values("track", &track)?, header.tracks.len())?;
        check.values::<u32>("segment", &segment)?;
        check.values::<u32>("version", &version)?;
        check.check_below("caption_index", check.values("caption_index", &caption_index)?, header.captions.len())?;
        check.check_offsets(
            "caption_offsets",
            check.values("caption_offsets", &caption_offsets)?,
            caption_index.len() / 4,
        )?;
        check.check_offsets(
            "text_offsets",
            check.values("text_offsets", &text_offsets)?,
            text_states.len() / 2 / spec.text_width,
        )?;
        let code_values: &[u16] = check.values("codes", &codes)?;
        if let Some(code) = code_values.iter().find(|&&code| usize::from(code) >= spec.codec.cardinality) {
            return Err(check.fail(format!("codes below {}", spec.codec.cardinality), code.to_string()));
        }
        let positions: &[u16] = check.values("clock", &clock)?;
        if let Some(position) = positions.iter().find(|&&position| !is_position(position)) {
            return Err(check.fail(format!("positions below {CYCLE_TICKS} in `clock`"), position.to_string()));
        }
        let state_values: &[f16] = check.values("text_states", &text_states)?;
        if state_values.iter().any(|value| !value.is_finite()) {
            return Err(check.fail("finite text states", "a NaN or an infinity"));
        }
        drop(check);
        Ok(Self {
            path: path.to_path_buf(),
            header,
            items,
            codes,
            clock,
            lengths,
            track,
            segment,
            version,
            caption_offsets,
            caption_index,
            text_offsets,
            text_states,
            map,
        })
    }

    /// Opens all shards (`*.safetensors`) of some folders, those of a folder in the order of their names, and
    /// checks that they belong together.
    ///
    /// # Errors
    /// A folder cannot be listed or has no shard, one is broken, or two differ in codec or encoder.
    pub fn open_folders(folders: &[impl AsRef<Path>]) -> Result<Vec<Self>, DataError> {
        let mut shards = Vec::new();
        for folder in folders {
            let folder = folder.as_ref();
            let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
                .map_err(DataError::io(folder, "list the shard folder"))?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
                .collect();
            if paths.is_empty() {
                return Err(DataError::format(folder, "shards (*.safetensors) written by `mambo prepare`", "none"));
            }
            paths.sort();
            for path in &paths {
                shards.push(Self::open(path)?);
            }
        }
        let Some(first) = shards.first() else { return Ok(shards) };
        for shard in &shards {
            if shard.header.spec != first.header.spec {
                return Err(DataError::format(
                    &shard.path,
                    format!("the codec, text encoder and sizes of {}", first.path.display()),
                    "others; prepare the corpus again into an empty folder",
                ));
            }
        }
        Ok(shards)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Codec, encoder, tracks and caption texts.
    #[must_use]
    pub fn header(&self) -> &ShardHeader {
        &self.header
    }

    /// Number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items
    }

    /// Never true: an open shard has items.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Values of a tensor whose type and place were checked when opening.
    fn values<T: bytemuck::Pod>(&self, range: &Range<usize>) -> &[T] {
        bytemuck::cast_slice(&self.map[range.clone()])
    }

    /// One item.
    ///
    /// # Panics
    /// `index` is not below [`Shard::len`].
    #[must_use]
    pub fn item(&self, index: usize) -> Item<'_> {
        let frames = self.header.spec.frames;
        let size = self.header.spec.codec.levels * frames;
        let offsets: &[u32] = self.values(&self.caption_offsets);
        let captions = &self.values::<u32>(&self.caption_index)[offsets[index] as usize..offsets[index + 1] as usize];
        Item {
            track: &self.header.tracks[self.values::<u32>(&self.track)[index] as usize],
            segment: self.values::<u32>(&self.segment)[index],
            version: self.values::<u32>(&self.version)[index],
            length: self.values::<u32>(&self.lengths)[index] as usize,
            codes_kt: &self.values(&self.codes)[index * size..(index + 1) * size],
            clock_t: &self.values(&self.clock)[index * frames..(index + 1) * frames],
            captions,
        }
    }

    /// The hidden states of a caption, row-major `[L, D]`.
    ///
    /// # Panics
    /// `caption` is not an index into the header's captions.
    #[must_use]
    pub fn text_states(&self, caption: usize) -> &[f16] {
        let offsets: &[u32] = self.values(&self.text_offsets);
        let width = self.header.spec.text_width;
        &self.values(&self.text_states)[offsets[caption] as usize * width..offsets[caption + 1] as usize * width]
    }
}
