//! A few numbers as horizontal bars.

use super::html::{Element, element, text};

const WIDTH: f64 = 480.0;
const ROW: f64 = 24.0;
const NAME: f64 = 110.0;
const VALUE: f64 = 80.0;

/// Draws `rows` of names and values in `unit`, the largest over the whole width.
pub(super) fn bars(title: &str, unit: &str, color: &'static str, rows: &[(&str, f64)]) -> Element {
    let max = rows
        .iter()
        .fold(f64::MIN_POSITIVE, |max, (_, value)| max.max(*value));
    let digits = digits(rows, max);
    let row = |(number, (name, value)): (usize, &(&str, f64))| {
        let y = number as f64 * ROW;
        let width = (WIDTH - NAME - VALUE) * value / max;
        let place = [
            ("x", NAME),
            ("y", y + 4.0),
            ("width", width),
            ("height", ROW - 8.0),
        ];
        [
            text("text", "", name).at([("x", 0.0), ("y", y + 16.0)]),
            element("rect").with("class", color).at(place),
            text("text", "", format_args!("{value:.digits$} {unit}"))
                .at([("x", NAME + width + 6.0), ("y", y + 16.0)]),
        ]
    };
    let drawing = element("svg")
        .with("viewBox", format_args!("0 0 {WIDTH} {}", rows.len() as f64 * ROW))
        .with("role", "img")
        .child(element("title").text(title))
        .children(rows.iter().enumerate().flat_map(row));
    element("figure").child(text("h3", "", title)).child(drawing)
}

/// How many decimals values up to `max` need: none when all are whole.
fn digits(rows: &[(&str, f64)], max: f64) -> usize {
    if rows.iter().all(|(_, value)| value.fract() == 0.0) {
        0
    } else if max < 1.0 {
        3
    } else if max < 10.0 {
        2
    } else {
        1
    }
}
