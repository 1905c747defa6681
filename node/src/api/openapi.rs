//! The OpenAPI document: made from the table that the router is made from, so that it cannot name other routes.

use serde_json::{Map, Value, json};

use super::error::ErrorCode;
use super::routes::{Content, ROUTES, Route};
use super::schema;

/// Returns the document.
pub(super) fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let entry = paths.entry(route.path).or_insert_with(|| json!({}));
        entry[route.method] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "HyperFabric local API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Served on loopback. Every request needs the bearer token in api.token of the data folder.",
        },
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": schema::all(),
        },
    })
}

fn operation(route: &Route) -> Value {
    let in_path =
        route.path.split(['{', '}']).skip(1).step_by(2).map(
            |name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }),
        );
    let in_query = route.query.iter().map(|(name, meaning)| {
        json!({ "name": name, "in": "query", "required": false, "description": meaning, "schema": { "type": "string" } })
    });
    let mut parameters: Vec<Value> = in_path.chain(in_query).collect();
    if let Content::JsonOrBytes(name) = route.takes {
        parameters.extend(schema::fields_as_query(name));
    }
    let mut responses = Map::new();
    responses.insert(
        "200".to_owned(),
        json!({ "description": "done", "content": content(route.gives) }),
    );
    for code in ErrorCode::ALL {
        let description = serde_json::to_value(code).unwrap_or_default();
        responses.insert(
            code.status().as_str().to_owned(),
            json!({ "description": description, "content": content(Content::Json("ErrorBody")) }),
        );
    }
    let mut operation = json!({
        "operationId": operation_id(route),
        "summary": route.summary,
        "parameters": parameters,
        "responses": responses,
    });
    let body = content(route.takes);
    if !body.is_null() {
        operation["requestBody"] = json!({ "required": true, "content": body });
    }
    operation
}

/// Names an operation after its method and path: `post_transfers_id_cancel`.
fn operation_id(route: &Route) -> String {
    let path = route
        .path
        .trim_start_matches("/v1/fabric/")
        .replace(['{', '}'], "");
    format!(
        "{}_{}",
        route.method,
        path.trim_matches('/').replace(['/', '.'], "_")
    )
}

fn content(content: Content) -> Value {
    let reference = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    match content {
        Content::Nothing => Value::Null,
        Content::Json(name) => json!({ "application/json": { "schema": reference(name) } }),
        Content::List(name) => {
            json!({ "application/json": { "schema": { "type": "array", "items": reference(name) } } })
        }
        Content::JsonOrBytes(name) => json!({
            "application/json": { "schema": reference(name) },
            "application/octet-stream": {},
        }),
        Content::Events(name) => json!({
            "text/event-stream": { "schema": { "type": "string", "description": format!("events named transfer; their data is a {name}") } },
        }),
        Content::Text => json!({ "text/plain": { "schema": { "type": "string" } } }),
        Content::AnyJson => json!({ "application/json": { "schema": { "type": "object" } } }),
    }
}
