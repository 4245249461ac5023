//! One picture: how far each system is from the real clips, every round a dot, its mean a bar.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::{GenerationResult, Role, SystemResult};
use crate::EvalError;
use crate::report::number;

/// Width, and height of a system's row.
const SIZE: (u32, u32) = (960, 44);
const MODEL: RGBColor = RGBColor(34, 102, 170);
const OTHER: RGBColor = RGBColor(204, 102, 51);
const FLOOR: RGBColor = RGBColor(150, 150, 150);
/// Half the height of a bar, of a row of height 1.
const HALF: f64 = 0.28;

/// The plot as an `<svg>` element.
pub(super) fn distance_plot(result: &GenerationResult) -> Result<String, EvalError> {
    let mut svg = String::new();
    {
        let size = (SIZE.0, SIZE.1 * (result.systems.len() as u32 + 1));
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw(&area, &result.systems)
            .map_err(|reason| EvalError::Encode { what: "the plot of systems".into(), reason })?;
    }
    Ok(svg)
}

/// Its distances: of the rounds, or of the only one.
fn distances(system: &SystemResult) -> Vec<f64> {
    if system.rounds.is_empty() { vec![system.comparison.frechet.distance] } else { system.rounds.clone() }
}

fn draw(area: &DrawingArea<SVGBackend<'_>, Shift>, systems: &[SystemResult]) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    area.fill(&WHITE).map_err(|error| text(&error))?;
    let most = systems.iter().flat_map(distances).fold(1e-9, f64::max);
    let rows = systems.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(24)
        .y_label_area_size(200)
        .build_cartesian_2d(0.0..1.1 * most, 0.0..rows)
        .map_err(|error| text(&error))?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.07))
        .y_labels(0)
        .x_label_formatter(&|x| number(*x))
        .draw()
        .map_err(|error| text(&error))?;
    for (place, system) in systems.iter().enumerate() {
        let (all, middle) = (distances(system), rows - place as f64 - 0.5);
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let colour = match system.role {
            Role::Model => MODEL,
            Role::Other => OTHER,
            Role::Bigram | Role::Uniform | Role::Ceiling => FLOOR,
        };
        let bar = Rectangle::new([(0.0, middle - HALF), (mean, middle + HALF)], colour.mix(0.5).filled());
        chart.draw_series([bar]).map_err(|error| text(&error))?;
        let dots = all.iter().map(|distance| Circle::new((*distance, middle), 3, colour.filled()));
        chart.draw_series(dots).map_err(|error| text(&error))?;
        // Beside the chart, as far left as the names need.
        let (x, y) = chart.backend_coord(&(0.0, middle));
        let label = format!("{}  {}", system.name, number(mean));
        let style = ("sans-serif", 13).into_font().color(&BLACK).pos(plotters::style::text_anchor::Pos::new(
            plotters::style::text_anchor::HPos::Right,
            plotters::style::text_anchor::VPos::Center,
        ));
        area.draw_text(&label, &style, (x - 8, y)).map_err(|error| text(&error))?;
    }
    area.present().map_err(|error| text(&error))
}
