//! The report as aligned text.

use super::{FigureTable, Report};

pub(super) fn render(report: &Report) -> String {
    let mut out = format!("{}\n", report.title);
    for note in &report.notes {
        out.push_str(&format!("  {note}\n"));
    }
    for table in &report.tables {
        out.push('\n');
        add_table(table, &mut out);
    }
    out
}

fn add_table(table: &FigureTable, out: &mut String) {
    let columns = table.columns.len();
    let cell = |row: &[String], column: usize| row.get(column).map_or("", String::as_str).to_owned();
    let width = |column: usize| {
        let cells = table.rows.iter().map(|row| cell(&row.cells, column).chars().count());
        cells.chain([table.columns[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &[String]| {
        let mut line = String::new();
        for (column, width) in widths.iter().enumerate() {
            let text = cell(row, column);
            let padding = " ".repeat(width - text.chars().count());
            // Names to the left, figures to the right.
            if column == 0 {
                line.push_str(&format!("{text}{padding}"));
            } else {
                line.push_str(&format!("  {padding}{text}"));
            }
        }
        line.trim_end().to_owned()
    };
    out.push_str(&format!("{}\n{}\n", table.title, line(&table.columns)));
    let total: usize = widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1);
    out.push_str(&format!("{}\n", "-".repeat(total)));
    for row in &table.rows {
        out.push_str(&format!("{}\n", line(&row.cells)));
    }
}
