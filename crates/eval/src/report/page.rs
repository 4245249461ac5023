//! The report as one HTML page: pictures and sound are data in it, no script runs, nothing is fetched.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::sound::{SOUND_TYPE, encode_sound};
use super::{FigureTable, Player, Report};
use crate::EvalError;
use crate::spectrogram::spectrogram_bytes;

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8885; --good: #2a8a4a; --bad: #c2413b; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
div.wide { overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.met td:last-child { color: var(--good); font-weight: 600; }
tr.missed td:last-child { color: var(--bad); font-weight: 600; }
section.group { border-top: 1px solid var(--line); padding: .8rem 0; }
div.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .9rem; margin-bottom: .3rem; }
figure img { width: 100%; height: 150px; display: block; border-radius: 4px 4px 0 0; }
audio { width: 100%; display: block; }
svg { max-width: 100%; height: auto; background: white; }
p.note { color: #888; margin: .2rem 0; }
";

pub(super) fn render(report: &Report) -> Result<String, EvalError> {
    let title = escape(&report.title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    );
    for note in &report.notes {
        page.push_str(&format!("<p class=\"note\">{}</p>\n", escape(note)));
    }
    for table in &report.tables {
        add_table(table, &mut page);
    }
    for plot in &report.plots {
        page.push_str(&format!("<h2>{}</h2>\n{}\n", escape(&plot.title), plot.svg));
    }
    if !report.players.is_empty() {
        page.push_str(
            "<h2>Listen</h2>\n<p class=\"note\">Spectrograms: 40 Hz at the bottom to 20 kHz at the top, \
             a tick at each octave from 62.5 Hz on.</p>\n",
        );
    }
    for group in report.players.chunk_by(|a, b| a.group == b.group) {
        page.push_str(&format!(
            "<section class=\"group\">\n<h3>{}</h3>\n<div class=\"clips\">\n",
            escape(&group[0].group)
        ));
        for player in group {
            add_player(player, &mut page)?;
        }
        page.push_str("</div>\n</section>\n");
    }
    page.push_str("</body>\n</html>\n");
    Ok(page)
}

fn add_table(table: &FigureTable, page: &mut String) {
    page.push_str(&format!("<h2>{}</h2>\n<div class=\"wide\"><table>\n<tr>", escape(&table.title)));
    for column in &table.columns {
        page.push_str(&format!("<th>{}</th>", escape(column)));
    }
    page.push_str("</tr>\n");
    for row in &table.rows {
        page.push_str(match row.verdict {
            Some(true) => "<tr class=\"met\">",
            Some(false) => "<tr class=\"missed\">",
            None => "<tr>",
        });
        for cell in &row.cells {
            page.push_str(&format!("<td>{}</td>", escape(cell)));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
}

fn add_player(player: &Player, page: &mut String) -> Result<(), EvalError> {
    let picture = STANDARD.encode(spectrogram_bytes(&player.samples, player.rate)?);
    let sound = STANDARD.encode(encode_sound(&player.samples, player.rate)?);
    page.push_str(&format!(
        "<figure>\n<figcaption><strong>{}</strong> {}</figcaption>\n\
         <img alt=\"spectrogram\" src=\"data:image/png;base64,{picture}\">\n\
         <audio controls preload=\"none\" src=\"data:{SOUND_TYPE};base64,{sound}\"></audio>\n</figure>\n",
        escape(&player.title),
        escape(&player.caption),
    ));
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
