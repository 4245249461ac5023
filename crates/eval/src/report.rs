//! One report, three forms: a text table, JSON, and a self-contained HTML page with players and spectrograms.

mod page;
mod sound;
mod text;

use std::path::Path;

use mambo_model::parameters::write_atomically;

use crate::EvalError;

/// Figures, and what there is to see and hear.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Heading.
    pub title: String,
    /// What a reader must know to read the figures.
    pub notes: Vec<String>,
    /// Tables, in order.
    pub tables: Vec<FigureTable>,
    /// Plots.
    pub plots: Vec<Plot>,
    /// Clips to hear.
    pub players: Vec<Player>,
    /// All figures, for machines.
    pub figures: serde_json::Value,
}

/// A table of printed figures.
#[derive(Debug, Clone, Default)]
pub struct FigureTable {
    /// Heading.
    pub title: String,
    /// Column names.
    pub columns: Vec<String>,
    /// Rows.
    pub rows: Vec<FigureRow>,
}

/// A row of a [`FigureTable`].
#[derive(Debug, Clone, Default)]
pub struct FigureRow {
    /// One cell a column.
    pub cells: Vec<String>,
    /// Whether a bar is met, in rows that hold one.
    pub verdict: Option<bool>,
}

/// A picture made of lines.
#[derive(Debug, Clone, Default)]
pub struct Plot {
    /// Heading.
    pub title: String,
    /// The `<svg>` element.
    pub svg: String,
}

/// A clip with its player.
#[derive(Debug, Clone, Default)]
pub struct Player {
    /// Clips of one group stand together.
    pub group: String,
    /// Which system or version.
    pub title: String,
    /// The prompt, or what else belongs to it.
    pub caption: String,
    /// Mono samples.
    pub samples: Vec<f32>,
    /// Their rate in Hz.
    pub rate: u32,
}

impl FigureTable {
    /// An empty table.
    pub fn new(title: &str, columns: &[&str]) -> Self {
        Self {
            title: title.to_owned(),
            columns: columns.iter().map(|column| (*column).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Appends a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(FigureRow { cells, verdict: None });
    }

    /// Appends a row that holds a bar.
    pub fn bar(&mut self, what: &str, value: String, bar: &str, met: bool) {
        let verdict = if met { "met" } else { "missed" };
        let cells = vec![what.to_owned(), value, bar.to_owned(), verdict.to_owned()];
        self.rows.push(FigureRow { cells, verdict: Some(met) });
    }

    /// A table for [`FigureTable::bar`].
    pub fn bars() -> Self {
        Self::new("Bars", &["what", "value", "bar", ""])
    }
}

impl Report {
    /// All tables as aligned text.
    pub fn text(&self) -> String {
        text::render(self)
    }

    /// All figures as indented JSON.
    pub fn json(&self) -> String {
        let mut text = format!("{:#}", self.figures);
        text.push('\n');
        text
    }

    /// One HTML page that needs no other file.
    pub fn html(&self) -> Result<String, EvalError> {
        page::render(self)
    }

    /// Writes [`Report::html`] to a file.
    pub fn write_html(&self, path: &Path) -> Result<(), EvalError> {
        write_atomically(path, self.html()?.as_bytes()).map_err(EvalError::io(path))
    }
}

/// A figure with as many decimals as it deserves.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "-".into();
    }
    let text = match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    };
    if text == "-0.000" { "0.000".into() } else { text }
}

/// A figure, or a dash where there is none.
pub fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), number)
}

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut table = FigureTable::new("Figures", &["system", "FD"]);
        table.row(vec!["a <model> & more".into(), number(12.345)]);
        table.row(vec!["β".into(), optional(None)]);
        let mut bars = FigureTable::bars();
        bars.bar("FD", number(0.1), "at most 0.15", true);
        bars.bar("text", percent(0.25), "at least 50 %", false);
        Report {
            title: "A test".into(),
            notes: vec!["Proxy figures.".into()],
            tables: vec![table, bars],
            plots: vec![Plot { title: "p".into(), svg: "<svg></svg>".into() }],
            players: vec![Player {
                group: "calm".into(),
                title: "model".into(),
                caption: "\"calm\" <music>".into(),
                samples: (0..44_100).map(|n| (n as f32 * 0.06).sin() * 0.5).collect(),
                rate: 44_100,
            }],
            figures: serde_json::json!({"fd": 12.345}),
        }
    }

    #[test]
    fn text_is_aligned() {
        let text = report().text();
        assert!(text.contains("A test"));
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).expect("a row").to_owned();
        let column = |line: &str, cell: &str| line[..line.find(cell).expect("a cell")].chars().count();
        assert_eq!(column(&line("a <model>"), "12.3") + 4, column(&line("β"), "-") + 1);
        assert!(text.contains("missed"));
    }

    #[test]
    fn page_stands_alone() {
        let page = report().html().expect("renders");
        assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
        assert!(page.contains("a &lt;model&gt; &amp; more") && page.contains("&quot;calm&quot; &lt;music&gt;"));
        assert!(page.contains("<audio") && page.contains("data:image/png;base64,iVBOR"));
        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("<script"));
        assert_eq!(page.matches("<table").count(), page.matches("</table>").count());
    }

    #[test]
    fn numbers_read_well() {
        let shown: Vec<String> = [0.1234, 1.234, 12.34, 123.4, -0.5, -1e-9, f64::NAN].map(number).to_vec();
        assert_eq!(shown, ["0.123", "1.23", "12.3", "123", "-0.500", "0.000", "-"]);
    }
}
