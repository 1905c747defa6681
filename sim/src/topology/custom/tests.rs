//! What a written topology means, and how bad ones are refused.

use super::*;
use crate::seed::Seed;
use crate::topology::{Shape, Topology};

const OFFICE: &str = r#"
ways_only = false
[link]
latency = "7ms"
loss = "1%"

[regions]
names = ["home", "office", "cloud"]
latency = [["1ms", "20ms", "30ms"], ["20ms", "2ms", "10ms"], ["35ms", "10ms", "3ms"]]

[[node]]
name = "server"
count = 2
region = "cloud"

[[node]]
name = "desk"
region = "office"
dialled_by = "region"

[[node]]
name = "printer"
region = "office"
dialled_by = ["desk"]

[[node]]
name = "laptop"
dialled_by = "nobody"

[[way]]
nodes = ["desk", "laptop"]
link = { latency = "3ms", loss = "5%" }

[[way]]
nodes = ["desk", "server-2"]
dials = "nobody"

[[way]]
nodes = ["printer", "server-1"]
dials = "first"
"#;

fn resolve(text: &str) -> Result<Custom, String> {
    let spec: CustomSpec = toml::from_str(text).map_err(|error| error.to_string())?;
    spec.resolve().map_err(|error| error.to_string())
}

fn topology(text: &str) -> Topology {
    let custom = resolve(text).unwrap();
    let peers = custom.len();
    let shape = Shape::Custom(std::sync::Arc::new(custom));
    Topology::new(Seed(1), &shape, peers, Conditions::default(), 0)
}

#[test]
fn links_are_those_of_the_pair_or_of_the_regions_or_the_general_ones() {
    let topology = topology(OFFICE);
    let latency = |a, b| {
        topology
            .conditions(a, b, &Conditions::default())
            .latency
            .mean()
            .as_millis()
    };
    // server-1, server-2, desk, printer, laptop
    assert_eq!((latency(0, 1), latency(0, 2), latency(2, 3)), (3, 10, 2));
    assert_eq!((latency(4, 0), latency(0, 4)), (30, 35), "from a row to a column");
    assert_eq!((latency(2, 4), latency(4, 2)), (3, 3));
    let plain = "[link]\nlatency = '7ms'\n[[node]]\nname = 'a'\n[[node]]\nname = 'b'\n";
    let plain = self::topology(plain);
    assert_eq!(plain.conditions(0, 1, &plain.base).latency.mean().as_millis(), 7);
    assert_eq!(resolve(OFFICE).unwrap().uneven(), Some(("cloud", "home")));
    assert_eq!(topology.region_names()[2], "office");
}

#[test]
fn who_can_dial_whom_is_as_written() {
    let reach = topology(OFFICE).reach;
    let (server, other, desk, printer, laptop) = (0, 1, 2, 3, 4);
    assert!(reach.dials(laptop, server) && !reach.dials(server, laptop));
    assert!(reach.dials(printer, desk) && !reach.dials(server, desk));
    assert!(reach.dials(desk, printer) && !reach.dials(laptop, printer));
    assert!(!reach.dials(desk, other) && !reach.dials(other, desk));
    assert!(reach.dials(printer, server) && !reach.dials(server, printer));
    let only = OFFICE.replace("ways_only = false", "ways_only = true");
    let only = only
        .replace("dials = \"first\"", "")
        .replace("dials = \"nobody\"", "");
    let reach = topology(&only.replace("dialled_by = [\"desk\"]", "")).reach;
    assert!(reach.dials(desk, other) && !reach.dials(server, other));
}

#[test]
fn bad_topologies_are_refused_with_the_place_and_the_reason() {
    for (from, to, reasons) in [
        (
            "nodes = [\"desk\", \"laptop\"]",
            "nodes = [\"desk\", \"lapdog\"]",
            ["[[way]] number 1", "lapdog"],
        ),
        (
            "nodes = [\"desk\", \"server-2\"]",
            "nodes = [\"laptop\", \"desk\"]",
            ["[[way]] number 2", "already"],
        ),
        (
            "nodes = [\"desk\", \"server-2\"]",
            "nodes = [\"desk\", \"desk\"]",
            ["[[way]] number 2", "itself"],
        ),
        (
            ", [\"35ms\", \"10ms\", \"3ms\"]",
            "",
            ["regions.latency", "2 rows for 3 regions"],
        ),
        (
            "[\"20ms\", \"2ms\", \"10ms\"]",
            "[\"20ms\", \"2ms\"]",
            ["row of \"office\"", "2 latencies for 3"],
        ),
        (
            "region = \"cloud\"",
            "region = \"clouds\"",
            ["clouds", "home, office, cloud"],
        ),
        ("name = \"printer\"", "name = \"desk\"", ["desk", "twice"]),
        (
            "dialled_by = [\"desk\"]",
            "dialled_by = [\"dusk\"]",
            ["dialled_by of node \"printer\"", "dusk"],
        ),
        (
            "\"home\", \"office\"",
            "\"home\", \"home\"",
            ["regions.names", "twice"],
        ),
        (
            "loss = \"5%\"",
            "loss = \"100%\"",
            ["[[way]] number 1", "less than 100%"],
        ),
        (
            "count = 2",
            "count = 2\ndialled_by = \"nobody\"",
            ["server-1", "dial it"],
        ),
        ("count = 2", "count = 200000", ["nodes", "20000"]),
        ("count = 2", "cuont = 2", ["cuont", "line"]),
    ] {
        assert!(OFFICE.contains(from), "{from}");
        let error = resolve(&OFFICE.replace(from, to)).unwrap_err();
        assert!(
            reasons.iter().all(|reason| error.contains(reason)),
            "{to}: {error}"
        );
    }
    let error = resolve("[[node]]\nname = 'alone'\n").unwrap_err();
    assert!(error.contains("1 nodes"), "{error}");
}

#[test]
fn the_topologies_of_this_repository_can_be_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies");
    let paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(paths.len(), 1, "{paths:?}");
    for path in paths {
        let spec = CustomSpec::read(&path).unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(spec.resolve().unwrap().uneven(), None, "{}", path.display());
    }
    let missing = CustomSpec::read(Path::new("missing.toml")).unwrap_err();
    assert!(missing.to_string().contains("missing.toml"), "{missing}");
}
