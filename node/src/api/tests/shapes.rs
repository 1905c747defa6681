//! The shapes that others script against.

use std::collections::BTreeMap;

use hyperfabric_protocol::Serial;
use serde::Serialize;
use serde_json::{Value, json};

use super::fake::{id, member, node_record, peer, status, transfer};
use crate::api::model::*;
use crate::api::{ApiError, ErrorBody, ErrorCode, schema};

/// Compares the fields of a full value with the table of its schema.
fn check(name: &str, value: impl Serialize) {
    let value = serde_json::to_value(value).unwrap();
    let shape = schema::all()[name].clone();
    let mut described: Vec<&String> = shape["properties"].as_object().unwrap().keys().collect();
    let mut present: Vec<&String> = value.as_object().unwrap().keys().collect();
    described.sort();
    present.sort();
    assert_eq!(described, present, "{name}");
    for (field, value) in value.as_object().unwrap() {
        let schema = &shape["properties"][field];
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_u64() => "integer",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let kinds = schema["type"].to_string();
        let fits = kinds.contains(kind)
            || (kind == "integer" && kinds.contains("number"))
            || (kind == "object" && (schema["$ref"].is_string() || schema["oneOf"].is_array()));
        assert!(fits, "{name}.{field} is {kind}, described as {schema}");
        if let Some(names) = schema["enum"].as_array() {
            assert!(
                names.contains(value),
                "{name}.{field} is {value}, described as {schema}"
            );
        }
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a list of shapes, one after the other")]
fn every_shape_of_nodes_and_peers_is_described_as_it_is() {
    let mut full = node_record("a");
    full.signature.memory_gb = Some(1.5);
    full.signature.compute_units = Some(1);
    full.signature.power_watts = Some(1.5);
    full.signature.rack_position = Some("r1".to_owned());
    full.signature.physical_location = Some("here".to_owned());
    full.signature.quantum_coherence_time_us = Some(1.5);
    full.signature.neuromorphic_neurons = Some(1);
    full.signature.photonic_channels = Some(1);
    full.signature.metadata = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
    check("NodeSignature", &full.signature);
    check("NodeRecord", &full);
    check(
        "Registered",
        Registered {
            node_id: id("a"),
            created: true,
        },
    );
    check("Status", status());
    check("PeerRecord", peer());
    check(
        "PingRequest",
        PingRequest {
            node: id("a"),
            count: 1,
            size: 1,
            timeout_ms: 1,
        },
    );
    let ping = PingReport {
        source: id("a"),
        destination: id("b"),
        latency_ns: 1,
        bandwidth_gbps: Some(1.5),
        path: vec![],
        packet_loss_rate: 0.5,
        timestamp: 1.5,
        success: true,
        samples_ns: vec![Some(1), None],
    };
    check("PingReport", ping);
    let order: SendOrder =
        serde_json::from_value(json!({ "to": "b", "path": "/x", "name": "x", "timeout_ms": 1 })).unwrap();
    check("SendOrder", order);
    let failed = ApiError::new(ErrorCode::Failed, "m").named("N").hint("h");
    check(
        "Accepted",
        Accepted {
            transfer_id: hyperfabric_protocol::TransferId([1; 16]),
        },
    );
    check(
        "Transfer",
        Transfer {
            error: Some(failed.clone()),
            skipped: Some(Skipped::default()),
            ..transfer(1, TransferState::Failed)
        },
    );
    let admit = AdmitRequest {
        peer_id: hyperfabric_protocol::PeerId([2; 32]),
        name: id("b"),
    };
    check("AdmitRequest", admit);
    let admission = Admission {
        name: id("b"),
        peer_id: hyperfabric_protocol::PeerId([2; 32]),
        certificate: "c".to_owned(),
    };
    check("Admission", admission);
    let entry = SkippedEntry {
        path: "a/link".to_owned(),
        kind: SkippedKind::SymbolicLink,
    };
    check("SkippedEntry", entry.clone());
    check(
        "Skipped",
        Skipped {
            count: 2,
            listed: vec![entry],
        },
    );
    check(
        "InviteRequest",
        InviteRequest {
            name: id("a"),
            expires_seconds: 1,
            uses: 1,
        },
    );
    check(
        "Invitation",
        Invitation {
            ticket: "t".to_owned(),
            name: id("a"),
            expires_unix_ms: 1,
            uses: 1,
        },
    );
    check("Member", member());
    check("RevokeRequest", RevokeRequest { name: id("a") });
    check(
        "Revoked",
        Revoked {
            name: id("a"),
            serials: vec![Serial([1; 16])],
        },
    );
    check("Done", Done { done: true });
    check("ApiError", &failed);
    check("ErrorBody", ErrorBody { error: failed });
}

#[test]
fn the_fields_that_scripts_rely_on_keep_their_names() {
    let sent = Sent {
        transfer_id: hyperfabric_protocol::TransferId([0xab; 16]),
        bytes: 1,
        seconds: 1.5,
        blake3: Some("00".to_owned()),
        route: vec![id("a"), id("b")],
        resumed_bytes: 0,
        skipped: None,
    };
    assert_eq!(
        serde_json::to_value(sent).unwrap(),
        json!({
            "transfer_id": "abababababababababababababababab",
            "bytes": 1,
            "seconds": 1.5,
            "blake3": "00",
            "route": ["a", "b"],
            "resumed_bytes": 0,
            "skipped": null,
        })
    );
}

#[test]
fn every_shape_of_transfers_members_and_errors_is_described_as_it_is() {
    let order: SendOrder = serde_json::from_value(json!({ "to": "b" })).unwrap();
    assert_eq!(order.wait_ms, WAIT_MS_DEFAULT);
    assert_eq!(serde_json::to_value(&order).unwrap()["type"], "generic");
}

#[test]
fn every_code_has_an_exit_code_and_a_status_of_its_own() {
    let exits: Vec<u8> = ErrorCode::ALL.iter().map(|code| code.exit_code()).collect();
    assert_eq!(exits, [2, 4, 4, 3, 2, 4, 4, 1, 1, 1, 5]);
    let statuses: std::collections::BTreeSet<u16> =
        ErrorCode::ALL.iter().map(|code| code.status().as_u16()).collect();
    assert_eq!(statuses.len(), ErrorCode::ALL.len());
}
