//! Tags as a judge hears them: likeness of a copy to its original, and agreement of a clip with its prompt.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{EvalError, Rows};

/// Cosine of two vectors; 0 where one is 0.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let scale = (dot(a, a) * dot(b, b)).sqrt();
    if scale > 0.0 { dot(a, b) / scale } else { 0.0 }
}

/// Tag cosines of copies with their originals, beside what any copy would get.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TagCosine {
    /// Patch by patch (3 s), mean over patches.
    pub patch: f64,
    /// Of the mean tags of each clip, mean over clips.
    pub clip: f64,
    /// Of the mean tags of each clip after taking off the mean over all originals: 0 for a copy that says nothing.
    pub clip_centred: f64,
    /// Floor for `patch`: patches of different originals.
    pub patch_shuffled: f64,
    /// Floor for `patch`: the mean over all originals as the answer to everything.
    pub patch_constant: f64,
    /// Floor for `clip`: different originals.
    pub clip_shuffled: f64,
    /// Floor for `clip`: the mean over all originals as the answer to everything.
    pub clip_constant: f64,
}

/// Compares pairs of (original, copy), each `[patches, tags]`; a pair counts as far as both sides reach.
pub fn tag_cosine(pairs: &[(Rows, Rows)]) -> Result<TagCosine, EvalError> {
    let usable: Vec<&(Rows, Rows)> = pairs.iter().filter(|(a, b)| a.count() > 0 && b.count() > 0).collect();
    let Some(first) = usable.first() else {
        return Err(EvalError::NoClips { what: "tag cosine needs a pair of clips of 3 s or more".into() });
    };
    let width = first.0.width();
    let mut originals = Vec::new();
    let mut copies = Vec::new();
    let mut patches: Vec<(usize, Vec<f64>)> = Vec::new();
    let mut patch_sum = 0.0;
    for (clip, (original, copy)) in usable.iter().enumerate() {
        if original.width() != width || copy.width() != width {
            return Err(EvalError::Width { expected: width, found: copy.width() });
        }
        for (a, b) in original.iter().zip(copy.iter()) {
            let (a, b) = (widen(a), widen(b));
            patch_sum += cosine(&a, &b);
            patches.push((clip, a));
        }
        originals.push(original.mean().unwrap_or_default());
        copies.push(copy.mean().unwrap_or_default());
    }
    let clip_mean = mean_vector(originals.iter().map(Vec::as_slice), width);
    let patch_mean = mean_vector(patches.iter().map(|(_, row)| row.as_slice()), width);
    let clips: Vec<(usize, Vec<f64>)> = originals.iter().cloned().enumerate().collect();
    let centre = |row: &[f64]| -> Vec<f64> { row.iter().zip(&clip_mean).map(|(x, m)| x - m).collect() };
    let pair_mean = |score: &dyn Fn(&[f64], &[f64]) -> f64| {
        let sum: f64 = originals.iter().zip(&copies).map(|(a, b)| score(a, b)).sum();
        sum / originals.len() as f64
    };
    Ok(TagCosine {
        patch: patch_sum / patches.len() as f64,
        clip: pair_mean(&|a, b| cosine(a, b)),
        clip_centred: pair_mean(&|a, b| cosine(&centre(a), &centre(b))),
        patch_shuffled: cosine_of_strangers(&patches, width),
        patch_constant: patches.iter().map(|(_, row)| cosine(row, &patch_mean)).sum::<f64>() / patches.len() as f64,
        clip_shuffled: cosine_of_strangers(&clips, width),
        clip_constant: pair_mean(&|a, _| cosine(a, &clip_mean)),
    })
}

fn widen(row: &[f32]) -> Vec<f64> {
    row.iter().map(|&value| f64::from(value)).collect()
}

fn mean_vector<'a>(rows: impl Iterator<Item = &'a [f64]>, width: usize) -> Vec<f64> {
    let mut sums = vec![0.0; width];
    let mut count = 0usize;
    for row in rows {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        count += 1;
    }
    sums.iter_mut().for_each(|sum| *sum /= count.max(1) as f64);
    sums
}

/// Mean cosine over all pairs of rows from different clips, exactly: from sums of unit vectors instead of all
/// pairs. Rows of a clip stand together. 0 with fewer than two clips.
fn cosine_of_strangers(rows: &[(usize, Vec<f64>)], width: usize) -> f64 {
    let square = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>();
    let mut total = vec![0.0; width];
    let (mut within, mut within_pairs) = (0.0, 0usize);
    for clip in rows.chunk_by(|a, b| a.0 == b.0) {
        let mut sum = vec![0.0; width];
        for (_, row) in clip {
            let length = square(row).sqrt().max(f64::MIN_POSITIVE);
            sum.iter_mut().zip(row).for_each(|(s, v)| *s += v / length);
        }
        within += square(&sum);
        within_pairs += clip.len() * clip.len();
        total.iter_mut().zip(&sum).for_each(|(t, s)| *t += s);
    }
    let pairs = rows.len() * rows.len() - within_pairs;
    if pairs == 0 { 0.0 } else { (square(&total) - within) / pairs as f64 }
}

/// A clip made for a prompt that names a tag.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptedClip {
    /// Which prompt; clips of the same prompt (other seeds) share it.
    pub prompt: usize,
    /// Index of the named tag among the judge's.
    pub tag: usize,
    /// Mean over patches of the judge's tags.
    pub mean_tags: Vec<f64>,
}

/// How often the judge hears what the prompt names.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromptAgreement {
    /// Share of clips with the named tag in the judge's top.
    pub agreement: f64,
    /// The same with every clip judged against every other prompt: what a system deaf to text gets.
    pub shuffled: f64,
    /// Tags that count as the top.
    pub top: usize,
    /// Number of clips.
    pub clips: usize,
    /// Share of clips by named tag.
    pub by_tag: BTreeMap<String, f64>,
}

/// Agreement over clips; `tag_names` are the judge's.
pub fn prompt_agreement(clips: &[PromptedClip], tag_names: &[&str], top: usize) -> Result<PromptAgreement, EvalError> {
    if clips.is_empty() {
        return Err(EvalError::NoClips { what: "prompt agreement".into() });
    }
    let prompts: BTreeMap<usize, usize> = clips.iter().map(|clip| (clip.prompt, clip.tag)).collect();
    let mut by_tag: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let (mut hits, mut shuffled) = (0usize, 0.0);
    for clip in clips {
        let best = top_indices(&clip.mean_tags, top);
        let hit = best.contains(&clip.tag);
        hits += usize::from(hit);
        let entry = by_tag.entry(tag_names.get(clip.tag).copied().unwrap_or("?").to_owned()).or_default();
        entry.0 += usize::from(hit);
        entry.1 += 1;
        let others = prompts.iter().filter(|(prompt, _)| **prompt != clip.prompt);
        let (found, count) = others
            .fold((0usize, 0usize), |(found, count), (_, tag)| (found + usize::from(best.contains(tag)), count + 1));
        shuffled += found as f64 / count.max(1) as f64;
    }
    Ok(PromptAgreement {
        agreement: hits as f64 / clips.len() as f64,
        shuffled: shuffled / clips.len() as f64,
        top,
        clips: clips.len(),
        by_tag: by_tag.into_iter().map(|(tag, (hits, count))| (tag, hits as f64 / count as f64)).collect(),
    })
}

/// Indices of the highest values, best first; of equals the earlier.
pub fn top_indices(values: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use mambo_model::random;

    fn table(rows: usize, index: u64) -> Rows {
        let mut rng = random::stream(2, "tags", index);
        Rows::new(10, (0..rows * 10).map(|_| random::uniform(&mut rng)).collect())
    }

    #[test]
    fn perfect_copies_and_strangers() {
        let pairs: Vec<(Rows, Rows)> = (0..8).map(|n| (table(4, n), table(4, n))).collect();
        let found = tag_cosine(&pairs).expect("pairs");
        for value in [found.patch, found.clip, found.clip_centred] {
            assert!((value - 1.0).abs() < 1e-9, "{found:?}");
        }
        assert!(found.patch_shuffled < found.patch_constant && found.patch_constant < 0.99, "{found:?}");
        // Copies of other clips come out at the shuffled floor, whatever way they are shuffled.
        let moved: Vec<(Rows, Rows)> = (0..8).map(|n| (table(4, n), table(4, (n + 3) % 8))).collect();
        let wrong = tag_cosine(&moved).expect("pairs");
        assert_eq!(wrong.clip_shuffled, found.clip_shuffled);
        assert!((wrong.clip - found.clip_shuffled).abs() < 0.05 && wrong.clip_centred < 0.3, "{wrong:?}");
    }

    #[test]
    fn strangers_are_counted_exactly() {
        let clips: Vec<Rows> = (0..5).map(|n| table(1 + n as usize % 3, n)).collect();
        let rows: Vec<(usize, Vec<f64>)> =
            clips.iter().enumerate().flat_map(|(clip, rows)| rows.iter().map(move |row| (clip, widen(row)))).collect();
        let (mut sum, mut count) = (0.0, 0);
        for (clip, row) in &rows {
            for (other_clip, other) in &rows {
                if clip != other_clip {
                    sum += cosine(row, other);
                    count += 1;
                }
            }
        }
        assert!((cosine_of_strangers(&rows, 10) - sum / f64::from(count)).abs() < 1e-12);
    }

    #[test]
    fn agreement_of_hearing_and_deaf_systems() {
        let names: Vec<String> = (0..10).map(|n| format!("tag {n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        // A system that plays what is asked: the named tag is the loudest.
        let obedient: Vec<PromptedClip> = (0..10)
            .map(|n| {
                let mut mean_tags = vec![0.1; 10];
                mean_tags[n] = 0.9;
                PromptedClip { prompt: n, tag: n, mean_tags }
            })
            .collect();
        let found = prompt_agreement(&obedient, &names, 1).expect("clips");
        assert_eq!((found.agreement, found.shuffled), (1.0, 0.0));
        // A deaf one always plays the same: agreement equals its shuffled control.
        let deaf: Vec<PromptedClip> =
            (0..10).map(|n| PromptedClip { prompt: n, tag: n, mean_tags: (0..10).map(f64::from).collect() }).collect();
        let found = prompt_agreement(&deaf, &names, 5).expect("clips");
        assert!((found.agreement - 0.5).abs() < 1e-12 && (found.shuffled - 0.5).abs() < 1e-12, "{found:?}");
        assert_eq!(found.by_tag["tag 9"], 1.0);
        assert!(prompt_agreement(&[], &names, 5).is_err());
    }
}
