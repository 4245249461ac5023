//! Collects items in memory and writes the shard as a whole.

use super::{HEADER_KEY, LAYOUT, ShardHeader, ShardSpec, ShardTrack};
use crate::atomic::write_bytes_atomically;
use crate::error::DataError;
use crate::manifest::Caption;
use half::f16;
use mambo_model::clock::{NO_BEAT, is_position};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::Path;

/// Hidden states of one text, row-major `[L, D]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TextStates {
    /// `L * D` values.
    pub states: Vec<f16>,
}

/// Builds one shard. The same calls give the same bytes.
#[derive(Debug)]
pub struct ShardWriter {
    header: ShardHeader,
    track_places: HashMap<String, usize>,
    caption_places: HashMap<String, usize>,
    codes: Vec<u16>,
    clock: Vec<u16>,
    lengths: Vec<u32>,
    track: Vec<u32>,
    segment: Vec<u32>,
    version: Vec<u32>,
    caption_offsets: Vec<u32>,
    caption_index: Vec<u32>,
    text_offsets: Vec<u32>,
    text_states: Vec<f16>,
}

fn refuse(problem: String) -> DataError {
    DataError::Argument { what: "shard item", problem }
}

impl ShardWriter {
    /// An empty shard.
    #[must_use]
    pub fn new(spec: ShardSpec) -> Self {
        Self {
            header: ShardHeader { layout: LAYOUT, spec, tracks: Vec::new(), captions: Vec::new() },
            track_places: HashMap::new(),
            caption_places: HashMap::new(),
            codes: Vec::new(),
            clock: Vec::new(),
            lengths: Vec::new(),
            track: Vec::new(),
            segment: Vec::new(),
            version: Vec::new(),
            caption_offsets: vec![0],
            caption_index: Vec::new(),
            text_offsets: vec![0],
            text_states: Vec::new(),
        }
    }

    /// Items so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Different captions so far.
    #[must_use]
    pub fn captions(&self) -> usize {
        self.header.captions.len()
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// The index of a track, added if new.
    pub fn track(&mut self, track: &ShardTrack) -> usize {
        if let Some(&place) = self.track_places.get(&track.id) {
            return place;
        }
        self.track_places.insert(track.id.clone(), self.header.tracks.len());
        self.header.tracks.push(track.clone());
        self.header.tracks.len() - 1
    }

    /// The index of a caption; `encode` is called only for a text that is new to this shard.
    ///
    /// # Errors
    /// What `encode` returns, or states that do not fill whole rows.
    pub fn caption(
        &mut self,
        caption: &Caption,
        encode: impl FnOnce() -> Result<TextStates, DataError>,
    ) -> Result<usize, DataError> {
        if let Some(&place) = self.caption_places.get(&caption.text) {
            return Ok(place);
        }
        let states = encode()?.states;
        let width = self.header.spec.text_width;
        if states.is_empty() || states.len() % width != 0 {
            return Err(refuse(format!("{} text states do not fill rows of width {width}", states.len())));
        }
        self.text_states.extend_from_slice(&states);
        self.text_offsets.push((self.text_states.len() / width) as u32);
        self.caption_places.insert(caption.text.clone(), self.header.captions.len());
        self.header.captions.push(caption.clone());
        Ok(self.header.captions.len() - 1)
    }

    /// Adds an item; `codes` is row-major `[K, length]`, `clock` is `[length]`, `captions` are indices from
    /// [`Self::caption`].
    ///
    /// # Errors
    /// Codes that are no whole frames, too many, or outside the codebook; a clock of another length or beyond its
    /// cycle; no caption.
    pub fn item(
        &mut self,
        track: usize,
        segment: u32,
        version: u32,
        codes: &[u16],
        clock: &[u16],
        captions: &[usize],
    ) -> Result<(), DataError> {
        let (levels, frames) = (self.header.spec.codec.levels, self.header.spec.frames);
        let length = codes.len() / levels;
        if codes.is_empty() || !codes.len().is_multiple_of(levels) || length > frames {
            let found = codes.len();
            return Err(refuse(format!(
                "{found} codes are not {levels} codebooks of 1 to {frames} frames ({length} whole frames)"
            )));
        }
        if let Some(code) = codes.iter().find(|&&code| usize::from(code) >= self.header.spec.codec.cardinality) {
            return Err(refuse(format!(
                "code {code} is outside the codebook of {}",
                self.header.spec.codec.cardinality
            )));
        }
        if clock.len() != length {
            return Err(refuse(format!("{} positions of the beat clock for {length} frames", clock.len())));
        }
        if let Some(position) = clock.iter().find(|&&position| !is_position(position)) {
            return Err(refuse(format!("position {position} is beyond the cycle of the beat clock")));
        }
        if captions.is_empty() || captions.iter().any(|&caption| caption >= self.header.captions.len()) {
            return Err(refuse("an item needs at least one caption of this shard".into()));
        }
        if track >= self.header.tracks.len() {
            return Err(refuse(format!("track {track} is not in this shard")));
        }
        for row in codes.chunks_exact(length) {
            self.codes.extend_from_slice(row);
            self.codes.resize(self.codes.len() + frames - length, 0);
        }
        self.clock.extend_from_slice(clock);
        self.clock.resize(self.lengths.len() * frames + frames, NO_BEAT);
        self.lengths.push(length as u32);
        self.track.push(track as u32);
        self.segment.push(segment);
        self.version.push(version);
        self.caption_index.extend(captions.iter().map(|&caption| caption as u32));
        self.caption_offsets.push(self.caption_index.len() as u32);
        Ok(())
    }

    /// Writes the shard, whole or not at all.
    ///
    /// # Errors
    /// Nothing was added, or writing fails.
    pub fn finish(self, path: &Path) -> Result<(), DataError> {
        if self.is_empty() {
            return Err(refuse("a shard needs at least one item".into()));
        }
        let as_format = |error: String| DataError::format(path, "a writable shard", error);
        let header = serde_json::to_string(&self.header).map_err(|error| as_format(error.to_string()))?;
        let items = self.lengths.len();
        let spec = &self.header.spec;
        let u32_view = |values: &'static str, data: &[u32]| {
            (values, Dtype::U32, vec![data.len()], bytemuck::cast_slice::<u32, u8>(data).to_vec())
        };
        let tensors = [
            (
                "codes",
                Dtype::U16,
                vec![items, spec.codec.levels, spec.frames],
                bytemuck::cast_slice(&self.codes).to_vec(),
            ),
            ("clock", Dtype::U16, vec![items, spec.frames], bytemuck::cast_slice(&self.clock).to_vec()),
            u32_view("lengths", &self.lengths),
            u32_view("track", &self.track),
            u32_view("segment", &self.segment),
            u32_view("version", &self.version),
            u32_view("caption_offsets", &self.caption_offsets),
            u32_view("caption_index", &self.caption_index),
            u32_view("text_offsets", &self.text_offsets),
            (
                "text_states",
                Dtype::F16,
                vec![self.text_states.len() / spec.text_width, spec.text_width],
                bytemuck::cast_slice(&self.text_states).to_vec(),
            ),
        ];
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, data)| Ok((*name, TensorView::new(*dtype, shape.clone(), data)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|error| as_format(error.to_string()))?;
        // One entry only: several would be written in the map's random order.
        let metadata = HashMap::from([(HEADER_KEY.to_owned(), header)]);
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(|error| as_format(error.to_string()))?;
        write_bytes_atomically(path, &bytes)
    }
}
