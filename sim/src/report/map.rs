//! The mesh, drawn: peers where their regions are, or on a circle, and the lines between them.

use std::f64::consts::TAU;

use super::html::{Element, element, text};
use crate::topology::REGIONS;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 300.0;
/// Where the regions of [`REGIONS`] are on a map of the world, roughly.
const PLACES: [(f64, f64); REGIONS.len()] = [
    (165.0, 115.0),
    (70.0, 130.0),
    (255.0, 75.0),
    (180.0, 230.0),
    (345.0, 175.0),
    (425.0, 100.0),
];
/// The colours of regions, of the page's own.
const COLORS: [&str; REGIONS.len()] = ["c0", "c1", "c2", "c3", "c4", "c5"];
/// More peers than this are no picture.
const PEERS_DRAWN_MAX: usize = 300;
/// Nor are more lines.
const LINES_DRAWN_MAX: usize = 2_000;
/// More than these hide each other unless they are faint.
const LINES_CLEAR_MAX: usize = 400;
/// The angle by which neighbors in a sunflower differ: they then fill a disc evenly.
const GOLDEN_ANGLE: f64 = 2.399_963;
const SUNFLOWER_STEP: f64 = 5.5;
const RADIUS: f64 = 130.0;

/// Draws a mesh. `regions` has one name for each peer, or nothing; `what` says what lines are.
pub(super) fn map(
    title: &str,
    what: &str,
    peers: usize,
    regions: &[&str],
    lines: &[(usize, usize)],
) -> Element {
    let places: Vec<(f64, f64, usize)> = if regions.is_empty() {
        circle(peers.min(PEERS_DRAWN_MAX))
    } else {
        clusters(&regions[..regions.len().min(peers).min(PEERS_DRAWN_MAX)])
    };
    let drawn: Vec<Element> = lines
        .iter()
        .filter_map(|(a, b)| {
            let (a, b) = (places.get(*a)?, places.get(*b)?);
            Some(element("line").at([("x1", a.0), ("y1", a.1), ("x2", b.0), ("y2", b.1)]))
        })
        .take(LINES_DRAWN_MAX)
        .collect();
    let caption = format!(
        "{} of {peers} peers; {} of {} lines: {what}",
        places.len(),
        drawn.len(),
        lines.len()
    );
    let class = if drawn.len() > LINES_CLEAR_MAX {
        "ways many"
    } else {
        "ways"
    };
    let dots = places.iter().enumerate().map(|(peer, (x, y, color))| {
        let region = regions
            .get(peer)
            .map_or(String::new(), |region| format!(", {region}"));
        element("circle")
            .with("class", COLORS[*color])
            .at([("cx", *x), ("cy", *y), ("r", 3.0)])
            .child(element("title").text(format_args!("p{peer}{region}")))
    });
    let mut names = Vec::new();
    for (number, name) in distinct(regions).into_iter().enumerate() {
        let (x, y) = centre(name, number);
        let count = regions.iter().filter(|region| **region == name).count();
        let below = SUNFLOWER_STEP * (count.min(PEERS_DRAWN_MAX) as f64).sqrt() + 16.0;
        names.push(text("text", "middle", name).at([("x", x), ("y", y + below)]));
    }
    let drawing = element("svg")
        .with("viewBox", format_args!("0 0 {WIDTH} {HEIGHT}"))
        .with("role", "img")
        .child(element("title").text(title))
        .child(element("g").with("class", class).children(drawn))
        .child(element("g").with("class", "peers").children(dots))
        .children(names);
    element("figure")
        .child(text("h3", "", title))
        .child(drawing)
        .child(text("figcaption", "", caption))
}

fn circle(peers: usize) -> Vec<(f64, f64, usize)> {
    let place = |peer: usize| {
        let angle = TAU * peer as f64 / peers as f64;
        (
            WIDTH / 2.0 + RADIUS * angle.sin(),
            HEIGHT / 2.0 - RADIUS * angle.cos(),
            0,
        )
    };
    (0..peers).map(place).collect()
}

/// The regions that there are, in the order in which they first appear.
fn distinct<'a>(regions: &[&'a str]) -> Vec<&'a str> {
    let mut names = Vec::new();
    for name in regions {
        if !names.contains(name) {
            names.push(*name);
        }
    }
    names
}

/// Where a region's peers are drawn: on the map of the world, or, for one that is not there, in its turn on a circle.
fn centre(name: &str, number: usize) -> (f64, f64) {
    match REGIONS.iter().position(|region| *region == name) {
        Some(region) => PLACES[region],
        None => {
            let angle = GOLDEN_ANGLE * number as f64;
            (
                WIDTH / 2.0 + RADIUS * angle.sin(),
                HEIGHT / 2.0 - 0.75 * RADIUS * angle.cos(),
            )
        }
    }
}

fn clusters(regions: &[&str]) -> Vec<(f64, f64, usize)> {
    let names = distinct(regions);
    let mut placed = vec![0u32; names.len()];
    let place = |name: &&str| {
        let number = names.iter().position(|region| region == name).unwrap_or(0);
        let turn = f64::from(placed[number]);
        placed[number] += 1;
        let (distance, angle) = (SUNFLOWER_STEP * (turn + 0.5).sqrt(), GOLDEN_ANGLE * turn);
        let (x, y) = centre(name, number);
        let color = REGIONS.iter().position(|region| region == name).unwrap_or(number);
        (
            x + distance * angle.cos(),
            y + distance * angle.sin(),
            color % COLORS.len(),
        )
    };
    regions.iter().map(place).collect()
}
