//! What a person sees of a run: `metrics.jsonl`, TensorBoard events, `loss.svg`, and one line now and then.
//!
//! Metrics of steps that a crash undid are dropped on resume, so the file reads as one unbroken run.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use mambo_model::parameters::write_atomically;
use plotters::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::tensorboard::EventWriter;

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Steps finished.
    pub step: u64,
    /// Seconds since this process started the run.
    pub seconds: f64,
    /// Values by name, e.g. `train/loss`.
    #[serde(flatten)]
    pub values: BTreeMap<String, f64>,
}

/// Writes and remembers the metrics of one run.
pub struct Tracker {
    folder: PathBuf,
    file: File,
    events: EventWriter,
    rows: Vec<Row>,
    started: Instant,
    first_step: u64,
}

/// Name of the metrics file in a run folder.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// Name of the curve in a run folder.
pub const CURVE_FILE: &str = "loss.svg";

impl Tracker {
    /// Opens the metrics of `folder` at `step`: rows after it are dropped.
    pub fn open(folder: &Path, step: u64) -> Result<Self, TrainError> {
        let path = folder.join(METRICS_FILE);
        let mut rows = Vec::new();
        if path.exists() {
            let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path, "read the metrics"))?;
            // A killed process may leave half a line at the end; it belongs to a step that is redone.
            rows = text.lines().filter_map(|line| serde_json::from_str::<Row>(line).ok()).collect();
            rows.retain(|row| row.step <= step);
            let kept: String = rows.iter().map(|row| line(row) + "\n").collect();
            write_atomically(&path, kept.as_bytes()).map_err(TrainError::io(&path, "write the metrics"))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(TrainError::io(&path, "open the metrics"))?;
        let events = EventWriter::create(folder, now()).map_err(TrainError::io(folder, "write events"))?;
        Ok(Self { folder: folder.to_owned(), file, events, rows, started: Instant::now(), first_step: step })
    }

    /// Writes one row. Values that are not finite are left out (JSON has no word for them).
    pub fn log(&mut self, step: u64, values: &[(&str, f64)]) -> Result<(), TrainError> {
        let finite = values.iter().filter(|(_, value)| value.is_finite());
        let row = Row {
            step,
            seconds: (self.started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            values: finite.map(|(name, value)| ((*name).to_owned(), *value)).collect(),
        };
        let path = self.folder.join(METRICS_FILE);
        writeln!(self.file, "{}", line(&row)).map_err(TrainError::io(&path, "write the metrics"))?;
        self.events
            .scalars(now(), step, row.values.iter().map(|(name, value)| (name.as_str(), *value)))
            .map_err(TrainError::io(&self.folder, "write events"))?;
        self.rows.push(row);
        Ok(())
    }

    /// All rows of the run, earlier processes included.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Seconds left at the speed of this process, once there is one.
    pub fn seconds_left(&self, step: u64, total: u64) -> Option<f64> {
        let done = step.checked_sub(self.first_step).filter(|&done| done > 0)?;
        Some(self.started.elapsed().as_secs_f64() / done as f64 * total.saturating_sub(step) as f64)
    }

    /// Draws the named metrics against the step into `loss.svg`.
    pub fn curve(&self, title: &str, names: &[&str]) -> Result<(), TrainError> {
        let path = self.folder.join(CURVE_FILE);
        let fail = |reason: String| TrainError::Plot { path: path.clone(), reason };
        let svg = draw(title, names, &self.rows).map_err(fail)?;
        write_atomically(&path, svg.as_bytes()).map_err(TrainError::io(&path, "write the curve"))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn line(row: &Row) -> String {
    serde_json::to_string(row).expect("finite numbers and strings")
}

fn draw(title: &str, names: &[&str], rows: &[Row]) -> Result<String, String> {
    let series: Vec<(&str, Vec<(f64, f64)>)> = names
        .iter()
        .map(|name| {
            let points = rows.iter().filter_map(|row| Some((row.step as f64, *row.values.get(*name)?)));
            (*name, points.collect::<Vec<_>>())
        })
        .filter(|(_, points)| !points.is_empty())
        .collect();
    let all = || series.iter().flat_map(|(_, points)| points);
    let last = all().map(|point| point.0).fold(1.0, f64::max);
    let low = all().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = all().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = match series.is_empty() {
        true => (0.0, 1.0),
        false if low < high => (low, high),
        false => (low - 0.5, high + 0.5),
    };
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (900, 500)).into_drawing_area();
        let text = |error: DrawingAreaErrorKind<_>| format!("{error:?}");
        area.fill(&WHITE).map_err(text)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..last, low..high)
            .map_err(text)?;
        chart.configure_mesh().x_desc("step").light_line_style(WHITE).draw().map_err(text)?;
        for (index, (name, points)) in series.into_iter().enumerate() {
            let colour = Palette99::pick(index).to_rgba();
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))
                .map_err(text)?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw().map_err(text)?;
        area.present().map_err(text)?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resumed_metrics_read_as_one_run() {
        let folder = tempfile::tempdir().unwrap();
        let mut tracker = Tracker::open(folder.path(), 0).unwrap();
        for step in 1..=5 {
            tracker.log(step, &[("train/loss", 1.0 / step as f64), ("bad", f64::NAN)]).unwrap();
        }
        drop(tracker);
        let path = folder.path().join(METRICS_FILE);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"step\": 6, \"sec");
        std::fs::write(&path, text).unwrap();
        let mut tracker = Tracker::open(folder.path(), 3).unwrap();
        tracker.log(4, &[("train/loss", 0.2)]).unwrap();
        let steps: Vec<u64> = tracker.rows().iter().map(|row| row.step).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 4);
        assert!(!text.contains("bad"));
    }

    #[test]
    fn the_curve_is_an_svg_with_every_series() {
        let folder = tempfile::tempdir().unwrap();
        let mut tracker = Tracker::open(folder.path(), 0).unwrap();
        tracker.curve("empty", &["train/loss"]).unwrap();
        tracker.log(1, &[("train/loss", 3.0), ("valid/loss", 3.5)]).unwrap();
        tracker.log(2, &[("train/loss", 2.0)]).unwrap();
        tracker.curve("two", &["train/loss", "valid/loss"]).unwrap();
        let svg = std::fs::read_to_string(folder.path().join(CURVE_FILE)).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("train/loss") && svg.contains("valid/loss"));
    }
}
