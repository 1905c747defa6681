//! What the shapes of [`model`](super::model) look like to OpenAPI.
//!
//! A field is one entry of a table: its name, whether it must be there, and its kind. A test serialises a value of every
//! shape and compares it with its table, so that the two cannot drift apart.

use hyperfabric_protocol::types::{DataType, HardwareType, PacketPriority};
use serde_json::{Map, Value, json};

use super::error::ErrorCode;
use super::model::{Direction, SkippedKind, TransferState};

/// The kind of a field.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Bool,
    Integer,
    Number,
    /// A list of the given kind.
    List(&'static Kind),
    /// A text, or null.
    MaybeText,
    /// A whole number, or null.
    MaybeInteger,
    /// A number, or null.
    MaybeNumber,
    /// A map from texts to texts.
    Texts,
    /// Another shape.
    Shape(&'static str),
    /// Another shape, or null.
    MaybeShape(&'static str),
    /// One of some names.
    OneOf(fn() -> Vec<String>),
}

/// Whether a field is always there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Always,
    Optional,
}

type Field = (&'static str, Need, Kind);

use Kind::{
    Bool, Integer, List, MaybeInteger, MaybeNumber, MaybeShape, MaybeText, Number, OneOf, Shape, Text, Texts,
};
use Need::{Always, Optional};

const NODE_SIGNATURE: &[Field] = &[
    ("node_id", Always, Text),
    ("hardware_type", Always, OneOf(|| names(HardwareType::ALL))),
    ("bandwidth_gbps", Always, Number),
    ("latency_ns", Always, Integer),
    ("memory_gb", Optional, Number),
    ("compute_units", Optional, Integer),
    ("power_watts", Optional, Number),
    ("rack_position", Optional, Text),
    ("physical_location", Optional, Text),
    ("quantum_coherence_time_us", Optional, Number),
    ("neuromorphic_neurons", Optional, Integer),
    ("photonic_channels", Optional, Integer),
    ("metadata", Optional, Texts),
];

const NODE_RECORD: &[Field] = &[
    ("peer_id", Always, Text),
    ("local", Always, Bool),
    ("reachable", Always, Bool),
    ("seen_unix_ms", Always, Integer),
];

const STATUS: &[Field] = &[
    ("version", Always, Text),
    ("peer_id", Always, Text),
    ("name", Always, Text),
    ("mesh", Always, MaybeText),
    ("open", Always, Bool),
    ("admitter", Always, Bool),
    ("certificate_expires_unix_ms", Always, MaybeInteger),
    ("listen", Always, List(&Text)),
    ("backend", Always, Text),
    ("uptime_seconds", Always, Number),
    ("nodes", Always, Integer),
    ("peers", Always, Integer),
    ("transfers", Always, Integer),
    ("inbox_bytes", Always, Integer),
    ("inbox_free_bytes", Always, Integer),
    ("handshakes_refused", Always, Integer),
    ("warnings", Always, List(&Text)),
];

const PEER_RECORD: &[Field] = &[
    ("peer_id", Always, Text),
    ("name", Always, MaybeText),
    ("connected", Always, Bool),
    ("transport", Always, MaybeText),
    ("address", Always, MaybeText),
    ("dialled", Always, Bool),
    ("connections", Always, Integer),
    ("rtt_us", Always, MaybeInteger),
    ("loss_ppm", Always, MaybeInteger),
    ("mtu", Always, MaybeInteger),
    ("sent_bytes", Always, Integer),
    ("received_bytes", Always, Integer),
    ("connected_unix_ms", Always, MaybeInteger),
];

const PING_REPORT: &[Field] = &[
    ("source", Always, Text),
    ("destination", Always, Text),
    ("latency_ns", Always, Integer),
    ("bandwidth_gbps", Always, MaybeNumber),
    ("path", Always, List(&Text)),
    ("packet_loss_rate", Always, Number),
    ("timestamp", Always, Number),
    ("success", Always, Bool),
    ("samples_ns", Always, List(&MaybeInteger)),
];

const SEND_ORDER: &[Field] = &[
    ("path", Optional, Text),
    ("name", Optional, Text),
    ("to", Always, Text),
    ("type", Optional, OneOf(|| names(DataType::ALL))),
    ("priority", Optional, OneOf(|| names(PacketPriority::ALL))),
    ("timeout_ms", Optional, Integer),
    ("wait_ms", Optional, Integer),
    ("sync", Optional, Bool),
];

const TRANSFER: &[Field] = &[
    ("transfer_id", Always, Text),
    (
        "direction",
        Always,
        OneOf(|| serde_names(&[Direction::Outgoing, Direction::Incoming])),
    ),
    ("state", Always, OneOf(|| serde_names(&TransferState::ALL))),
    ("name", Always, Text),
    ("path", Always, MaybeText),
    ("source", Always, Text),
    ("destination", Always, Text),
    ("type", Always, OneOf(|| names(DataType::ALL))),
    ("priority", Always, OneOf(|| names(PacketPriority::ALL))),
    ("bytes", Always, Integer),
    ("done_bytes", Always, Integer),
    ("resumed_bytes", Always, Integer),
    ("sent_bytes", Always, Integer),
    ("rate", Always, Integer),
    ("seconds", Always, Number),
    ("blake3", Always, MaybeText),
    ("route", Always, List(&Text)),
    ("started_unix_ms", Always, Integer),
    ("skipped", Always, MaybeShape("Skipped")),
    ("detail", Always, MaybeText),
    ("error", Always, MaybeShape("ApiError")),
];

const MEMBER: &[Field] = &[
    ("name", Always, Text),
    ("peer_id", Always, Text),
    ("serial", Always, Text),
    ("admitter", Always, Bool),
    ("connected", Always, Bool),
    ("revoked", Always, Bool),
    ("expires_unix_ms", Always, Integer),
];

/// Every shape with the tables of its fields.
const SHAPES: &[(&str, &[&[Field]])] = &[
    ("NodeSignature", &[NODE_SIGNATURE]),
    ("NodeRecord", &[NODE_SIGNATURE, NODE_RECORD]),
    (
        "Registered",
        &[&[("node_id", Always, Text), ("created", Always, Bool)]],
    ),
    ("Status", &[STATUS]),
    ("PeerRecord", &[PEER_RECORD]),
    (
        "PingRequest",
        &[&[
            ("node", Always, Text),
            ("count", Optional, Integer),
            ("size", Optional, Integer),
            ("timeout_ms", Optional, Integer),
        ]],
    ),
    ("PingReport", &[PING_REPORT]),
    ("SendOrder", &[SEND_ORDER]),
    ("Accepted", &[&[("transfer_id", Always, Text)]]),
    ("Transfer", &[TRANSFER]),
    (
        "Skipped",
        &[&[
            ("count", Always, Integer),
            ("listed", Always, List(&Shape("SkippedEntry"))),
        ]],
    ),
    (
        "SkippedEntry",
        &[&[
            ("path", Always, Text),
            ("kind", Always, OneOf(|| serde_names(&SkippedKind::ALL))),
        ]],
    ),
    (
        "InviteRequest",
        &[&[
            ("name", Always, Text),
            ("expires_seconds", Optional, Integer),
            ("uses", Optional, Integer),
        ]],
    ),
    (
        "Invitation",
        &[&[
            ("ticket", Always, Text),
            ("name", Always, Text),
            ("expires_unix_ms", Always, Integer),
            ("uses", Always, Integer),
        ]],
    ),
    (
        "AdmitRequest",
        &[&[("peer_id", Always, Text), ("name", Always, Text)]],
    ),
    (
        "Admission",
        &[&[
            ("name", Always, Text),
            ("peer_id", Always, Text),
            ("certificate", Always, Text),
        ]],
    ),
    ("Member", &[MEMBER]),
    ("RevokeRequest", &[&[("name", Always, Text)]]),
    (
        "Revoked",
        &[&[("name", Always, Text), ("serials", Always, List(&Text))]],
    ),
    ("Done", &[&[("done", Always, Bool)]]),
    (
        "ApiError",
        &[&[
            ("code", Always, OneOf(|| serde_names(&ErrorCode::ALL))),
            ("name", Optional, Text),
            ("message", Always, Text),
            ("hint", Optional, Text),
        ]],
    ),
    ("ErrorBody", &[&[("error", Always, Shape("ApiError"))]]),
];

/// Returns the schemas of all shapes, by name.
pub(super) fn all() -> Value {
    Value::Object(
        SHAPES
            .iter()
            .map(|(name, _)| ((*name).to_owned(), shape(name)))
            .collect(),
    )
}

/// Returns the fields of a shape as parameters of a query.
pub(super) fn fields_as_query(name: &str) -> Vec<Value> {
    let parameter = |(name, need, kind): &Field| {
        let required = *need == Always;
        json!({
            "name": name,
            "in": "query",
            "required": false,
            "description": if required { "required for an upload" } else { "for an upload" },
            "schema": schema(*kind),
        })
    };
    fields(name)
        .filter(|(field, ..)| *field != "path")
        .map(parameter)
        .collect()
}

fn fields(name: &str) -> impl Iterator<Item = &'static Field> {
    let tables = SHAPES
        .iter()
        .find(|(known, _)| *known == name)
        .map_or(&[][..], |(_, tables)| *tables);
    tables.iter().flat_map(|table| table.iter())
}

fn shape(name: &str) -> Value {
    let properties: Map<String, Value> = fields(name)
        .map(|(field, _, kind)| ((*field).to_owned(), schema(*kind)))
        .collect();
    let required: Vec<&str> = fields(name)
        .filter(|(_, need, _)| *need == Always)
        .map(|(field, ..)| *field)
        .collect();
    json!({ "type": "object", "properties": properties, "required": required })
}

fn schema(kind: Kind) -> Value {
    match kind {
        Text => json!({ "type": "string" }),
        Bool => json!({ "type": "boolean" }),
        Integer => json!({ "type": "integer", "minimum": 0 }),
        Number => json!({ "type": "number" }),
        List(items) => json!({ "type": "array", "items": schema(*items) }),
        MaybeText => json!({ "type": ["string", "null"] }),
        MaybeInteger => json!({ "type": ["integer", "null"], "minimum": 0 }),
        MaybeNumber => json!({ "type": ["number", "null"] }),
        Texts => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        Shape(name) => json!({ "$ref": format!("#/components/schemas/{name}") }),
        MaybeShape(name) => json!({ "oneOf": [schema(Shape(name)), { "type": "null" }] }),
        OneOf(names) => json!({ "type": "string", "enum": names() }),
    }
}

fn names(values: &[impl ToString]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn serde_names(values: &[impl serde::Serialize]) -> Vec<String> {
    let name = |value| serde_json::to_value(value).ok()?.as_str().map(str::to_owned);
    values.iter().filter_map(name).collect()
}
