//! One picture: tag cosine, Fréchet distance, chroma correlation and mel distance against the number of levels.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::{CodecResult, LevelFigures};
use crate::EvalError;
use crate::report::number;

const SIZE: (u32, u32) = (960, 640);
const COLOURS: [RGBColor; 5] = [
    RGBColor(34, 102, 170),
    RGBColor(204, 102, 51),
    RGBColor(51, 136, 85),
    RGBColor(136, 68, 136),
    RGBColor(110, 110, 110),
];
const FLOOR_COLOUR: RGBColor = RGBColor(120, 120, 120);

struct Panel {
    title: String,
    value: fn(&LevelFigures) -> f64,
    /// Whether more is better: then the lower right corner is free for the legend, else the upper one.
    rises: bool,
    /// Horizontal lines: name and height.
    floors: Vec<(&'static str, f64)>,
}

/// The plot as an `<svg>` element; figures of the first judge.
pub fn codec_plot(result: &CodecResult) -> Result<String, EvalError> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        draw(&area, result).map_err(|reason| EvalError::Encode { what: "the plot of codecs".into(), reason })?;
    }
    Ok(svg)
}

fn draw(area: &DrawingArea<SVGBackend<'_>, Shift>, result: &CodecResult) -> Result<(), String> {
    area.fill(&WHITE).map_err(|error| error.to_string())?;
    for (cell, panel) in area.split_evenly((2, 2)).iter().zip(panels(result)) {
        draw_panel(cell, &panel, result)?;
    }
    area.present().map_err(|error| error.to_string())
}

fn panels(result: &CodecResult) -> [Panel; 4] {
    let first = result.codecs.first().and_then(|codec| codec.levels.first()).map(|level| &level.judges[0]);
    let judge = first.map_or("", |figures| figures.judge.as_str());
    let tag_floors = first.map_or(Vec::new(), |figures| {
        vec![("another clip", figures.tags.clip_shuffled), ("mean tags for all", figures.tags.clip_constant)]
    });
    [
        Panel {
            title: format!("tag cosine ({judge})"),
            value: |l| l.judges[0].tags.clip,
            rises: true,
            floors: tag_floors,
        },
        Panel {
            title: format!("FD from the originals ({judge})"),
            value: |l| l.judges[0].frechet.distance,
            rises: false,
            floors: vec![],
        },
        Panel {
            title: "chroma correlation".into(),
            value: |l| l.chroma_correlation,
            rises: true,
            floors: vec![("another clip", result.chroma_strangers)],
        },
        Panel { title: "multi-scale mel distance".into(), value: |l| l.mel_distance, rises: false, floors: vec![] },
    ]
}

fn draw_panel(cell: &DrawingArea<SVGBackend<'_>, Shift>, panel: &Panel, result: &CodecResult) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let all = result.codecs.iter().flat_map(|codec| &codec.levels);
    let most = all.clone().map(|level| level.levels).max().unwrap_or(1).max(2);
    let heights = all.map(panel.value).chain(panel.floors.iter().map(|floor| floor.1));
    let (low, high) = heights.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    let (low, high) = if low < high { (low, high) } else { (low - 0.5, low + 0.5) };
    let margin = 0.12 * (high - low);
    let mut chart = ChartBuilder::on(cell)
        .margin(12)
        .caption(&panel.title, ("sans-serif", 16))
        .x_label_area_size(28)
        .y_label_area_size(52)
        .build_cartesian_2d((0.9..most as f64 * 1.1).log_scale().base(2.0), low - margin..high + 1.5 * margin)
        .map_err(|error| text(&error))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.07))
        .x_desc("levels decoded")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| number(*y))
        .draw()
        .map_err(|error| text(&error))?;
    for (name, height) in &panel.floors {
        let line = [(0.9, *height), (most as f64 * 1.1, *height)];
        chart
            .draw_series(DashedLineSeries::new(line, 5, 4, FLOOR_COLOUR.stroke_width(1)))
            .map_err(|error| text(&error))?;
        let label = Text::new(
            format!("floor: {name}"),
            (1.0, *height + 0.5 * margin),
            ("sans-serif", 11).into_font().color(&FLOOR_COLOUR),
        );
        chart.draw_series([label]).map_err(|error| text(&error))?;
    }
    for (codec, colour) in result.codecs.iter().zip(COLOURS.iter().cycle()) {
        let points: Vec<(f64, f64)> =
            codec.levels.iter().map(|level| (level.levels as f64, (panel.value)(level))).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))
            .map_err(|error| text(&error))?
            .label(codec.name.clone())
            .legend(|(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2)));
        chart
            .draw_series(points.into_iter().map(|point| Circle::new(point, 3, colour.filled())))
            .map_err(|error| text(&error))?;
    }
    chart
        .configure_series_labels()
        .position(if panel.rises { SeriesLabelPosition::LowerRight } else { SeriesLabelPosition::UpperRight })
        .border_style(FLOOR_COLOUR)
        .background_style(WHITE.mix(0.8))
        .draw()
        .map_err(|error| text(&error))
}
