//! What a run has shown as one HTML file: numbers, plots over time, and the mesh drawn.
//!
//! The file needs nothing else: no script, font or picture from anywhere. It adapts to light and dark, and to a phone.

mod bars;
mod html;
mod map;
#[cfg(feature = "real")]
mod play;
mod plot;
#[cfg(feature = "real")]
mod real;
mod scale;
mod scenario;

#[cfg(feature = "real")]
pub use play::play_page;
#[cfg(feature = "real")]
pub use real::real_page;
pub use scale::scale_page;
pub use scenario::{TRANSFER_BUCKETS, scenario_page};

use html::{Element, element, text};

const STYLE: &str = "
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--dim:#5a6472;--grid:#dde1e6;--fault:#d9480f2b;--bad:#c92a2a}
.c0{--c:#1c7ed6}.c1{--c:#e8590c}.c2{--c:#2f9e44}.c3{--c:#9c36b5}.c4{--c:#c2255c}.c5{--c:#0c8599}
@media (prefers-color-scheme:dark){
:root{--bg:#14171b;--fg:#e6e9ed;--dim:#9aa5b1;--grid:#30363d;--fault:#ff922b33;--bad:#ff8787}
.c0{--c:#4dabf7}.c1{--c:#ffa94d}.c2{--c:#69db7c}.c3{--c:#da77f2}.c4{--c:#f783ac}.c5{--c:#3bc9db}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:70rem;padding:1rem;background:var(--bg);color:var(--fg);font:1rem/1.5 system-ui,sans-serif}
h1{font-size:1.4rem;line-height:1.3}h2{font-size:1.1rem;margin-top:2rem}h3{font-size:.95rem;margin:0}
.dim,figcaption{color:var(--dim);font-size:.85rem}.bad{color:var(--bad);font-weight:600}
.wide{overflow-x:auto}
table{border-collapse:collapse}td,th{text-align:left;padding:.15rem 1.2rem .15rem 0;vertical-align:top}
th{font-weight:400;color:var(--dim)}td{overflow-wrap:anywhere}
.plots{display:grid;gap:1.5rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr))}
figure{margin:0}.plots>figure:only-child{max-width:44rem}svg{width:100%;height:auto;display:block}
svg text{fill:var(--fg);font-size:12px;paint-order:stroke;stroke:var(--bg);stroke-width:2px}
@media (max-width:30rem){svg text{font-size:14px}}
svg .note{fill:var(--dim)}
.end{text-anchor:end}.middle{text-anchor:middle}
.grid{stroke:var(--grid)}rect,circle{fill:var(--c)}.fault{fill:var(--fault)}
polyline{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}
.ways{stroke:var(--dim);stroke-width:.5;stroke-opacity:.4}.many{stroke-opacity:.15}
.key{margin-right:1rem;white-space:nowrap}
.key::before{content:'';display:inline-block;width:.7em;height:.7em;margin-right:.4em;background:var(--c)}
";

/// A row of a page's first table.
type Row = (&'static str, String);

/// Puts a page together.
fn page(title: &str, about: &str, rows: Vec<Row>, sections: Vec<Element>) -> String {
    let head = element("head")
        .child(element("meta").with("charset", "utf-8"))
        .child(
            element("meta")
                .with("name", "viewport")
                .with("content", "width=device-width, initial-scale=1"),
        )
        .child(element("title").text(format_args!("{title} - hyperfabric-sim")))
        .child(element("style").text(STYLE));
    let rows = rows.into_iter().map(|(name, value)| {
        element("tr")
            .child(text("th", "", name))
            .child(text("td", "", value))
    });
    let body = element("body")
        .child(text("h1", "", title))
        .child(text("p", "dim", about))
        .child(element("table").children(rows))
        .children(sections);
    let html = element("html").with("lang", "en").child(head).child(body);
    format!("<!DOCTYPE html>\n{html}\n")
}

fn section(title: &str, content: impl IntoIterator<Item = Element>) -> Element {
    element("section").child(text("h2", "", title)).children(content)
}

fn plots(figures: Vec<Element>) -> Element {
    element("div").with("class", "plots").children(figures)
}
