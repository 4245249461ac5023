//! Formats made of packets: flac, mp3, ogg (vorbis, opus), m4a and raw aac. Symphonia takes the containers
//! apart and decodes all but Opus.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::well_known::{self, CODEC_ID_OPUS};
use symphonia::core::codecs::audio::{AudioCodecId, AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::common::Limit;
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::{Hint, Probe};
use symphonia::core::formats::{FormatOptions, FormatReader, Track, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;
use symphonia::core::packet::Packet;
use symphonia::default::{codecs, formats, meta};

use super::mp4::{EditList, Part};
use super::opus::OpusDecoder;
use super::sniff::{self, Kind};
use super::{Fault, Opened, Source};

/// Blocks are collected up to this many frames.
const BLOCK: usize = 16 * 1024;
/// This many packets in a row that do not decode are the end of patience.
const MAX_BAD_RUN: usize = 64;
/// Bad packets that are always let pass, e.g. where a file was cut out of a longer one.
const FREE_BAD: u64 = 4;

enum Decoder {
    Symphonia(Box<dyn AudioDecoder>),
    Opus(Box<OpusDecoder>),
}

struct PacketSource {
    kind: Kind,
    reader: Box<dyn FormatReader>,
    track: u32,
    decoder: Decoder,
    sample_rate: u32,
    channels: usize,
    /// Decoded samples that the format calls sound.
    part: Part,
    /// Samples the header promises.
    promised: Option<u64>,
    /// Ogg only: whether the file ends where a page ends that is marked as the last.
    ends_well: bool,
    given: u64,
    good: u64,
    bad: u64,
    bad_run: usize,
    last_error: &'static str,
    /// What ended the stream, to be told after the samples before it.
    ending: Option<Result<(), Fault>>,
    collected: Vec<Vec<f32>>,
}

/// Opens a file of this kind that starts at byte `start` (tags may stand before).
pub(super) fn open(mut file: File, kind: Kind, start: u64) -> Result<Opened, Fault> {
    let ends_well = kind != Kind::Ogg || ogg_ends_well(&mut file, start)?;
    if kind == Kind::Flac {
        check_flac_has_frames(&mut file, start)?;
    }
    let edits = if kind == Kind::Mp4 { super::mp4::edit_list(&mut file)? } else { EditList::default() };
    let cut = match kind {
        Kind::Mp4 => super::mp4::promised_length(&mut file)? > file.metadata()?.len(),
        _ => !ends_well,
    };
    let reader = match open_container(file, kind) {
        Err(Fault::Malformed(_)) if cut => return Err(Fault::Truncated(None)),
        opened => opened?,
    };
    let track = reader.default_track(TrackType::Audio).ok_or(Fault::NoAudioTrack)?;
    let (track_id, promised) = (track.id, track.num_frames);
    let parameters = audio_parameters(track)?.clone();
    let decoder = make_decoder(&parameters)?;
    let name = format_name(kind, parameters.codec);
    let mut source = PacketSource {
        kind,
        reader,
        track: track_id,
        decoder,
        sample_rate: parameters.sample_rate.unwrap_or(0),
        channels: parameters.channels.as_ref().map_or(0, |channels| channels.count()),
        part: Part::default(),
        promised: promised.filter(|&frames| frames > 0 && kind != Kind::Ogg),
        ends_well,
        given: 0,
        good: 0,
        bad: 0,
        bad_run: 0,
        last_error: "",
        ending: None,
        collected: Vec::new(),
    };
    // What a header says of rate and channels is not always what comes out (e.g. AAC).
    source.collect(1)?;
    if source.good == 0 && source.sample_rate == 0 {
        return Err(Fault::Malformed("its header names no sample rate".into()));
    }
    let tags = collect_tags(source.reader.as_mut());
    if kind == Kind::Mp4 {
        source.part = match tags.iter().find(|(key, _)| key.contains("itunsmpb")) {
            Some((_, text)) => super::mp4::from_itunes_tag(text).unwrap_or_default(),
            None => edits.part(source.sample_rate),
        };
        // The duration in the header counts the encoder's samples too, the kept part does not.
        source.promised = source.promised.map(|frames| source.part.keep.map_or(frames, |keep| keep.min(frames)));
    }
    Ok(Opened {
        format: name,
        sample_rate: source.sample_rate,
        channels: source.channels.max(1),
        tags,
        source: Box::new(source),
    })
}

fn open_container(file: File, kind: Kind) -> Result<Box<dyn FormatReader>, Fault> {
    let mut probe = Probe::default();
    match kind {
        Kind::Flac => probe.register_format::<formats::FlacReader<'_>>(),
        Kind::Ogg => probe.register_format::<formats::OggReader<'_>>(),
        Kind::Mpeg => probe.register_format::<formats::MpaReader<'_>>(),
        Kind::Adts => probe.register_format::<formats::AdtsReader<'_>>(),
        Kind::Mp4 => probe.register_format::<formats::IsoMp4Reader<'_>>(),
    }
    if kind != Kind::Mp4 {
        // MP4 has tags of its own, and a look for these at the pretended end of a cut file would fail.
        probe.register_metadata::<meta::Id3v2Reader<'_>>();
        probe.register_metadata::<meta::Id3v1Reader<'_>>();
    }
    let mut medium = Medium { length: file.metadata()?.len(), file };
    if kind == Kind::Mp4 {
        medium.length = super::mp4::promised_length(&mut medium.file)?;
    }
    medium.rewind()?;
    let stream = MediaSourceStream::new(Box::new(medium), MediaSourceStreamOptions::default());
    let limits =
        MetadataOptions::default().limit_tag_bytes(Limit::Maximum(1 << 20)).limit_visual_bytes(Limit::Maximum(0));
    probe.probe(&Hint::new(), stream, FormatOptions::default(), limits).map_err(|error| match error {
        Error::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Fault::Malformed("it ends inside its header".into())
        }
        error => container_fault(error),
    })
}

/// A file of pretended length. Of an MP4 file that is cut off, symphonia would not decode even what is there.
struct Medium {
    file: File,
    length: u64,
}

impl Read for Medium {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for Medium {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        match to {
            SeekFrom::End(offset) => self.file.seek(SeekFrom::Start(self.length.saturating_add_signed(offset))),
            to => self.file.seek(to),
        }
    }
}

impl MediaSource for Medium {
    fn is_seekable(&self) -> bool {
        true
    }

    fn byte_len(&self) -> Option<u64> {
        Some(self.length)
    }
}

fn container_fault(error: Error) -> Fault {
    match error {
        Error::IoError(error) => Fault::from(error),
        Error::Unsupported(what) => Fault::Unsupported(what.into()),
        error => Fault::Malformed(error.to_string()),
    }
}

fn audio_parameters(track: &Track) -> Result<&AudioCodecParameters, Fault> {
    match &track.codec_params {
        Some(CodecParameters::Audio(parameters)) => Ok(parameters),
        _ => Err(Fault::NoAudioTrack),
    }
}

fn make_decoder(parameters: &AudioCodecParameters) -> Result<Decoder, Fault> {
    if parameters.codec == CODEC_ID_OPUS {
        let header = parameters.extra_data.as_deref().unwrap_or(&[]);
        return Ok(Decoder::Opus(Box::new(OpusDecoder::new(header)?)));
    }
    if let Some(channels) = &parameters.channels {
        match channels.count() {
            0 => return Err(Fault::NoChannels),
            count if count > super::MAX_CHANNELS => return Err(Fault::TooManyChannels(count)),
            _ => {}
        }
    }
    let mut registry = symphonia::core::codecs::registry::CodecRegistry::new();
    registry.register_audio_decoder::<codecs::AacDecoder>();
    registry.register_audio_decoder::<codecs::AlacDecoder>();
    registry.register_audio_decoder::<codecs::FlacDecoder>();
    registry.register_audio_decoder::<codecs::MpaDecoder>();
    registry.register_audio_decoder::<codecs::VorbisDecoder>();
    registry.make_audio_decoder(parameters, &AudioDecoderOptions::default()).map(Decoder::Symphonia).map_err(|error| {
        match error {
            Error::Unsupported(what) => Fault::Unsupported(format!("codec {} ({what})", parameters.codec)),
            error => container_fault(error),
        }
    })
}

fn format_name(kind: Kind, codec: AudioCodecId) -> &'static str {
    match codec {
        well_known::CODEC_ID_OPUS => "opus",
        well_known::CODEC_ID_VORBIS => "vorbis",
        well_known::CODEC_ID_AAC => "aac",
        well_known::CODEC_ID_ALAC => "alac",
        well_known::CODEC_ID_FLAC => "flac",
        well_known::CODEC_ID_MP1 => "mp1",
        well_known::CODEC_ID_MP2 => "mp2",
        _ => kind.name(),
    }
}

fn collect_tags(reader: &mut dyn FormatReader) -> BTreeMap<String, String> {
    let mut tags = BTreeMap::new();
    let mut metadata = reader.metadata();
    loop {
        if let Some(revision) = metadata.current() {
            super::tags::from_revision(revision, &mut tags);
        }
        if metadata.pop().is_none() {
            break;
        }
    }
    // Vorbis comments have no field of that name; programs use this one.
    if let (None, Some(description)) = (tags.get("comment"), tags.get("description").cloned()) {
        tags.insert("comment".into(), description);
    }
    tags
}

impl Source for PacketSource {
    fn next(&mut self) -> Result<Option<Vec<Vec<f32>>>, Fault> {
        loop {
            self.collect(BLOCK)?;
            let mut block = std::mem::take(&mut self.collected);
            let decoded = block.first().map_or(0, Vec::len);
            if decoded == 0 {
                return match self.ending.replace(Ok(())) {
                    Some(Err(fault)) => Err(fault),
                    _ => Ok(None),
                };
            }
            self.cut_to_part(&mut block);
            let kept = block.first().map_or(0, Vec::len);
            self.given += kept as u64;
            if kept > 0 {
                return Ok(Some(block));
            }
        }
    }
}

impl PacketSource {
    fn cut_to_part(&mut self, block: &mut [Vec<f32>]) {
        for samples in block.iter_mut() {
            let skip = self.part.skip.min(samples.len() as u64) as usize;
            samples.drain(..skip);
        }
        let decoded_before = block.first().map_or(0, Vec::len) as u64;
        // All channels lost as many; the first one tells how many are still to drop.
        if self.part.skip > 0 && decoded_before == 0 {
            return;
        }
        self.part.skip = 0;
        if let Some(keep) = self.part.keep {
            let room = keep.saturating_sub(self.given);
            for samples in block.iter_mut() {
                samples.truncate(room.min(samples.len() as u64) as usize);
            }
        }
    }

    /// Decodes until `wanted` frames are collected or the stream has ended.
    fn collect(&mut self, wanted: usize) -> Result<(), Fault> {
        while self.ending.is_none() && self.collected.first().map_or(0, Vec::len) < wanted {
            match self.reader.next_packet() {
                Ok(Some(packet)) if packet.track_id == self.track => {
                    if let Err(fault) = self.decode(&packet) {
                        self.ending = Some(Err(fault));
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => self.ending = Some(self.judge_end(false)),
                Err(Error::IoError(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    self.ending = Some(self.judge_end(self.kind == Kind::Mp4));
                }
                Err(Error::ResetRequired) => {
                    if let Err(fault) = self.follow_chain() {
                        self.ending = Some(Err(fault));
                    }
                }
                Err(error) => self.ending = Some(Err(container_fault(error))),
            }
        }
        // Before the first sample, a fault is the file's fault as a whole.
        if self.good == 0
            && matches!(self.ending, Some(Err(_)))
            && let Some(Err(fault)) = self.ending.replace(Ok(()))
        {
            return Err(fault);
        }
        Ok(())
    }

    fn decode(&mut self, packet: &Packet) -> Result<(), Fault> {
        let decoded = match &mut self.decoder {
            Decoder::Opus(decoder) => decoder.decode(packet),
            Decoder::Symphonia(decoder) => match decoder.decode(packet) {
                Ok(buffer) => {
                    let mut channels = Vec::new();
                    buffer.copy_to_vecs_planar(&mut channels);
                    Ok((buffer.spec().rate(), channels))
                }
                Err(Error::DecodeError(reason)) => Err(reason),
                Err(Error::IoError(_)) => Err("a packet that ends too early"),
                Err(error) => return Err(container_fault(error)),
            },
        };
        match decoded {
            Ok((rate, channels)) => self.accept(rate, channels),
            Err(reason) => {
                tracing::debug!(reason, "skipped a packet that does not decode");
                self.bad += 1;
                self.bad_run += 1;
                self.last_error = reason;
                if self.bad_run >= MAX_BAD_RUN {
                    return Err(Fault::Malformed(format!("{MAX_BAD_RUN} packets in a row do not decode ({reason})")));
                }
                Ok(())
            }
        }
    }

    fn accept(&mut self, rate: u32, channels: Vec<Vec<f32>>) -> Result<(), Fault> {
        if channels.first().is_none_or(Vec::is_empty) {
            return Ok(());
        }
        if self.good == 0 {
            self.sample_rate = rate;
            self.channels = channels.len();
        } else if (rate, channels.len()) != (self.sample_rate, self.channels) {
            return Err(Fault::Unsupported(format!(
                "a change from {} Hz, {} channels to {rate} Hz, {} channels on the way",
                self.sample_rate,
                self.channels,
                channels.len()
            )));
        }
        self.good += 1;
        self.bad_run = 0;
        if self.collected.is_empty() {
            self.collected = channels;
        } else {
            for (all, new) in self.collected.iter_mut().zip(&channels) {
                all.extend_from_slice(new);
            }
        }
        Ok(())
    }

    /// Goes on with the next stream of a chained file.
    fn follow_chain(&mut self) -> Result<(), Fault> {
        let track = self.reader.default_track(TrackType::Audio).ok_or(Fault::NoAudioTrack)?;
        self.track = track.id;
        self.decoder = make_decoder(audio_parameters(track)?)?;
        self.promised = None;
        Ok(())
    }

    fn judge_end(&self, cut: bool) -> Result<(), Fault> {
        if self.good == 0 && self.bad > 0 {
            return Err(Fault::Malformed(format!("none of its packets decodes ({})", self.last_error)));
        }
        if self.bad > FREE_BAD && self.bad * 50 > self.good {
            return Err(Fault::Malformed(format!(
                "{} of {} packets do not decode ({})",
                self.bad,
                self.bad + self.good,
                self.last_error
            )));
        }
        // Counts of samples are off by a codec frame in many honest files, and by the packets let pass.
        let slack = 4096 + self.bad * 4096;
        let have = self.given + self.collected.first().map_or(0, Vec::len) as u64;
        let short = self.promised.filter(|&promised| have + slack.min(promised / 8) < promised);
        if cut || short.is_some() || !self.ends_well {
            return Err(Fault::Truncated(short.or(self.promised)));
        }
        Ok(())
    }
}

/// A FLAC file may end behind its header: then it is empty, or cut off if the header promises samples.
fn check_flac_has_frames(file: &mut File, start: u64) -> Result<(), Fault> {
    let length = file.metadata()?.len();
    let mut position = start + 4;
    let mut promised = 0;
    loop {
        let head = sniff::read_at(file, position, 4 + 18)?;
        let Some(&[kind, a, b, c]) = head.first_chunk::<4>() else {
            return Err(Fault::Malformed("it ends inside its header".into()));
        };
        if kind & 0x7f == 0 {
            // The last 36 bits of the 18 bytes before the digest.
            promised = head
                .get(17..22)
                .map_or(0, |bits| bits.iter().fold(0, |all, &byte| all << 8 | u64::from(byte)) & ((1 << 36) - 1));
        }
        position += 4 + u64::from(u32::from_be_bytes([0, a, b, c]));
        if kind & 0x80 != 0 {
            break;
        }
    }
    match position.cmp(&length) {
        Ordering::Less => Ok(()),
        Ordering::Equal if promised == 0 => Err(Fault::NoSamples),
        Ordering::Equal => Err(Fault::Truncated(Some(promised))),
        Ordering::Greater => Err(Fault::Malformed("it ends inside its header".into())),
    }
}

/// Whether the last page of an Ogg file is whole and marked as the last of its stream.
fn ogg_ends_well(file: &mut File, start: u64) -> std::io::Result<bool> {
    // A page has at most 65,307 bytes; junk or a tag may follow the last one.
    let length = file.metadata()?.len();
    let from = length.saturating_sub(2 * 65_536).max(start);
    let tail = sniff::read_at(file, from, (length - from) as usize)?;
    let mut marked = false;
    let mut at = 0;
    while let Some(found) = tail[at..].windows(4).position(|window| window == b"OggS") {
        let page = &tail[at + found..];
        let Some(segments) = page.get(26).map(|&count| usize::from(count)) else { return Ok(false) };
        let Some(table) = page.get(27..27 + segments) else { return Ok(false) };
        let size = 27 + segments + table.iter().map(|&length| usize::from(length)).sum::<usize>();
        if page[4] != 0 {
            // Not a page but the same four bytes inside one.
            at += found + 4;
            continue;
        }
        if size > page.len() {
            return Ok(false);
        }
        marked = page[5] & 4 != 0;
        at += found + size;
    }
    Ok(marked)
}
