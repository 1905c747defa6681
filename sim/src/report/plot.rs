//! Plots over time, with the faults shaded behind them.

use super::html::{Element, element, text};

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 36.0;
/// About how many marks an axis has.
const MARKS: f64 = 5.0;
/// What the eye still finds when something lasted for no time at all.
const SHADE_MIN: f64 = 1.5;

/// How points are drawn.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Joined.
    Line,
    /// As the tops of bars, this many seconds wide, around the point.
    Steps(f64),
    /// Each by itself.
    Dots,
    /// As bars from zero, this many seconds wide, around the point.
    Bars(f64),
}

/// Points of one kind.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: &'static str,
    /// One of the page's colours.
    pub(super) color: &'static str,
    pub(super) kind: Kind,
    /// Seconds, and the value.
    pub(super) points: Vec<(f64, f64)>,
}

/// A stretch of time behind the plots.
#[derive(Debug)]
pub(super) struct Shade {
    pub(super) label: String,
    pub(super) from: f64,
    pub(super) until: f64,
}

/// What all plots of a page have in common.
#[derive(Debug)]
pub(super) struct Frame {
    /// Which time it is.
    pub(super) time: &'static str,
    /// How many seconds there are.
    pub(super) seconds: f64,
    pub(super) shades: Vec<Shade>,
}

/// The scale of an axis from zero: a round step, and a multiple of it that is not below `max`.
fn scale(max: f64) -> (f64, f64) {
    if !max.is_finite() || max <= 0.0 {
        return (1.0, 1.0);
    }
    let rough = max / MARKS;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough);
    let step = factor.unwrap_or(10.0) * power;
    // What rounding adds must not add a step.
    (step, ((max / step) - 1e-9).ceil() * step)
}

/// A unit of bytes in which numbers up to `max` read well, and how many it has.
fn byte_unit(max: f64) -> (&'static str, f64) {
    match max {
        max if max >= 1e9 => ("GB", 1e9),
        max if max >= 1e6 => ("MB", 1e6),
        max if max >= 1e3 => ("kB", 1e3),
        _ => ("B", 1.0),
    }
}

/// Says how many bytes these are.
pub(super) fn bytes(bytes: u64) -> String {
    let (unit, size) = byte_unit(bytes as f64);
    format!("{:.1} {unit}", bytes as f64 / size)
}

/// Joins points.
pub(super) fn line(name: &'static str, color: &'static str, points: Vec<(f64, f64)>) -> Series {
    Series {
        name,
        color,
        kind: Kind::Line,
        points,
    }
}

/// What a counter gains per second, at each sample since the one before.
pub(super) fn rates(counter: &[(f64, u64)]) -> Vec<(f64, f64)> {
    let rate = |pair: &[(f64, u64)]| {
        let [(before, had), (now, has)] = pair else {
            return None;
        };
        Some((*now, has.saturating_sub(*had) as f64 / (now - before)))
    };
    let first = counter.first().map(|(at, _)| (*at, 0.0));
    first
        .into_iter()
        .chain(counter.windows(2).filter_map(rate))
        .collect()
}

/// Draws a plot of bytes, in a unit in which they read well.
pub(super) fn in_bytes(
    title: &'static str,
    per: &str,
    color: &'static str,
    points: Vec<(f64, f64)>,
    frame: &Frame,
) -> Element {
    let mut series = [line(title, color, points)];
    let (unit, size) = byte_unit(max_of(&series));
    for (_, value) in &mut series[0].points {
        *value /= size;
    }
    plot(title, &format!("{unit}{per}"), &series, frame)
}

fn max_of(series: &[Series]) -> f64 {
    let values = series.iter().flat_map(|series| &series.points);
    values.fold(0.0, |max, (_, value)| max.max(*value))
}

fn mark(value: f64, step: f64) -> String {
    let digits = if step >= 1.0 {
        0
    } else if step >= 0.1 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

struct Axes {
    seconds: f64,
    top: f64,
}

impl Axes {
    fn x(&self, seconds: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (seconds / self.seconds).clamp(0.0, 1.0)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value / self.top).clamp(0.0, 1.0)
    }
}

/// Draws a plot.
pub(super) fn plot(title: &str, unit: &str, series: &[Series], frame: &Frame) -> Element {
    let (step, top) = scale(max_of(series));
    let axes = Axes {
        seconds: frame.seconds.max(f64::MIN_POSITIVE),
        top,
    };
    let drawing = element("svg")
        .with("viewBox", format_args!("0 0 {WIDTH} {HEIGHT}"))
        .with("role", "img")
        .child(element("title").text(title))
        .children(
            frame
                .shades
                .iter()
                .enumerate()
                .flat_map(|(n, at)| shade(&axes, n, at)),
        )
        .children(y_axis(&axes, step, unit))
        .children(x_axis(&axes, frame.time))
        .children(series.iter().map(|series| points(&axes, series)));
    let keys = series.iter().map(|series| {
        element("span")
            .with("class", format_args!("key {}", series.color))
            .text(series.name)
    });
    element("figure")
        .child(text("h3", "", title))
        .child(drawing)
        .child(element("figcaption").children(keys))
}

fn shade(axes: &Axes, number: usize, shade: &Shade) -> [Element; 2] {
    let (from, until) = (axes.x(shade.from), axes.x(shade.until));
    let place = [
        ("x", from),
        ("y", TOP),
        ("width", (until - from).max(SHADE_MIN)),
        ("height", HEIGHT - TOP - BOTTOM),
    ];
    let rect = element("rect").with("class", "fault").at(place);
    [
        rect.child(element("title").text(&shade.label)),
        text("text", "note", number + 1).at([("x", from + 2.0), ("y", TOP + 11.0)]),
    ]
}

fn y_axis(axes: &Axes, step: f64, unit: &str) -> Vec<Element> {
    let mut made = vec![text("text", "", unit).at([("x", 4.0), ("y", 14.0)])];
    let count = (axes.top / step).round() as usize;
    for number in 0..=count {
        let value = number as f64 * step;
        let y = axes.y(value);
        let ends = [("x1", LEFT), ("y1", y), ("x2", WIDTH - RIGHT), ("y2", y)];
        made.push(element("line").with("class", "grid").at(ends));
        made.push(text("text", "end", mark(value, step)).at([("x", LEFT - 5.0), ("y", y + 4.0)]));
    }
    made
}

fn x_axis(axes: &Axes, time: &str) -> Vec<Element> {
    let (step, _) = scale(axes.seconds);
    let y = HEIGHT - BOTTOM;
    let count = (axes.seconds / step).floor() as usize;
    let mut made: Vec<Element> = (0..=count)
        .map(|number| {
            let value = number as f64 * step;
            text("text", "middle", mark(value, step)).at([("x", axes.x(value)), ("y", y + 15.0)])
        })
        .collect();
    let middle = f64::midpoint(LEFT, WIDTH - RIGHT);
    made.push(text("text", "middle", format_args!("{time}, s")).at([("x", middle), ("y", HEIGHT - 5.0)]));
    made
}

fn points(axes: &Axes, series: &Series) -> Element {
    let made = element("g").with("class", series.color);
    let places = series.points.iter().map(|(x, y)| (axes.x(*x), axes.y(*y)));
    match series.kind {
        Kind::Line => made.child(polyline(places)),
        Kind::Steps(seconds) => {
            let half = seconds / 2.0;
            let ends = series
                .points
                .iter()
                .flat_map(|(x, y)| [(x - half, *y), (x + half, *y)]);
            made.child(polyline(ends.map(|(x, y)| (axes.x(x), axes.y(y)))))
        }
        Kind::Dots => {
            made.children(places.map(|(x, y)| element("circle").at([("cx", x), ("cy", y), ("r", 2.5)])))
        }
        Kind::Bars(seconds) => made.children(series.points.iter().map(|(x, value)| {
            let (from, until, y) = (
                axes.x(x - seconds / 2.0),
                axes.x(x + seconds / 2.0),
                axes.y(*value),
            );
            element("rect").at([
                ("x", from),
                ("y", y),
                ("width", (until - from) * 0.9),
                ("height", axes.y(0.0) - y),
            ])
        })),
    }
}

fn polyline(places: impl Iterator<Item = (f64, f64)>) -> Element {
    let list: Vec<String> = places.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    element("polyline").with("points", list.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_has_round_marks_and_room_for_all_values() {
        assert_eq!(scale(60.0), (20.0, 60.0));
        assert_eq!(scale(9.3), (2.0, 10.0));
        assert_eq!(scale(0.0), (1.0, 1.0));
        for max in [0.003, 0.7, 1.0, 4.1, 17.0, 99.0, 12_345.0] {
            let (step, top) = scale(max);
            assert!(top >= max * 0.999_999 && top < max + step, "{max}: {step} {top}");
            assert!((2.0..=6.0).contains(&(top / step).round()), "{max}: {step} {top}");
        }
    }
}
