//! The routes of the local API: one table, from which both the router and its OpenAPI document are made, and the
//! handlers that turn a request into a call of [`Control`](super::Control).

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{CONTENT_TYPE, HeaderMap};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use hyperfabric_protocol::types::NodeSignature;
use hyperfabric_protocol::{NodeId, TransferId};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::control::{Ping, SendRequest, SendSource};
use super::error::{ApiError, ErrorCode};
use super::model::{
    Accepted, Admission, Done, HTTP_WAIT_MS_MAX, INVITE_SECONDS_MAX, INVITE_USES_MAX, Invitation,
    InviteRequest, Member, NodeRecord, PING_COUNT_MAX, PING_SIZE_BYTES_MAX, PING_TIMEOUT_MS_MAX, PeerRecord,
    PingReport, PingRequest, Registered, RevokeRequest, Revoked, SendOrder, Status, Transfer,
};
use super::{Api, events, openapi, source, upload};

/// The largest JSON body, in bytes.
const JSON_BYTES_MAX: usize = 64 * 1024;
/// The media type of an order, and of every other body but that of an upload.
const JSON_TYPE: &str = "application/json";
/// The media type of an upload.
const BYTES_TYPE: &str = "application/octet-stream";
/// The longest that a whole ping over HTTP may take: a connection that is silent longer is closed.
const HTTP_PING_MAX: Duration = Duration::from_millis(HTTP_WAIT_MS_MAX);

/// What a route takes or gives.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    /// Nothing.
    Nothing,
    /// JSON of the named schema.
    Json(&'static str),
    /// JSON: a list of the named schema.
    List(&'static str),
    /// JSON of the named schema, or the bytes themselves with the schema's fields in the query.
    JsonOrBytes(&'static str),
    /// Server-sent events whose data is JSON of the named schema.
    Events(&'static str),
    /// Text.
    Text,
    /// JSON that is not described further.
    AnyJson,
}

/// One route.
pub(super) struct Route {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) summary: &'static str,
    /// Names and meanings of the parameters in the query; those in the path stand in the path.
    pub(super) query: &'static [(&'static str, &'static str)],
    pub(super) takes: Content,
    pub(super) gives: Content,
    pub(super) handler: fn() -> MethodRouter<Arc<Api>>,
}

impl Route {
    const fn get(
        path: &'static str,
        gives: Content,
        summary: &'static str,
        handler: fn() -> MethodRouter<Arc<Api>>,
    ) -> Self {
        Self {
            method: "get",
            path,
            summary,
            query: &[],
            takes: Content::Nothing,
            gives,
            handler,
        }
    }

    const fn post(
        path: &'static str,
        takes: Content,
        gives: Content,
        summary: &'static str,
        handler: fn() -> MethodRouter<Arc<Api>>,
    ) -> Self {
        Self {
            method: "post",
            path,
            summary,
            query: &[],
            takes,
            gives,
            handler,
        }
    }
}

/// Every route.
pub(super) const ROUTES: &[Route] = &[
    Route::get(
        "/v1/fabric/status",
        Content::Json("Status"),
        "How the daemon is",
        || get(status),
    ),
    Route::get(
        "/v1/fabric/nodes",
        Content::List("NodeRecord"),
        "Every known node",
        || get(nodes),
    ),
    Route::post(
        "/v1/fabric/nodes",
        Content::Json("NodeSignature"),
        Content::Json("Registered"),
        "Make this peer host a node",
        || post(register),
    ),
    Route::get(
        "/v1/fabric/nodes/{id}",
        Content::Json("NodeRecord"),
        "One node; a slash in its id is written %2F",
        || get(node),
    ),
    Route::get(
        "/v1/fabric/peers",
        Content::List("PeerRecord"),
        "Every known or connected peer",
        || get(peers),
    ),
    Route::post(
        "/v1/fabric/ping",
        Content::Json("PingRequest"),
        Content::Json("PingReport"),
        "Measure the way to a node",
        || post(ping),
    ),
    Route::post(
        "/v1/fabric/send",
        Content::JsonOrBytes("SendOrder"),
        Content::Json("Accepted"),
        "Begin a transfer of a file below send.roots, or of the body",
        || post(send),
    ),
    Route::get(
        "/v1/fabric/transfers",
        Content::List("Transfer"),
        "Transfers of both directions",
        || get(transfers),
    ),
    Route::get(
        "/v1/fabric/transfers/{id}",
        Content::Json("Transfer"),
        "One transfer",
        || get(transfer),
    ),
    Route::post(
        "/v1/fabric/transfers/{id}/cancel",
        Content::Nothing,
        Content::Json("Transfer"),
        "End a transfer",
        || post(cancel),
    ),
    Route::post(
        "/v1/fabric/transfers/{id}/resume",
        Content::Nothing,
        Content::Json("Transfer"),
        "Begin a failed or cancelled transfer again where it stopped",
        || post(resume),
    ),
    Route {
        query: &[("transfer", "only this transfer, until it has ended")],
        ..Route::get(
            "/v1/fabric/events",
            Content::Events("Transfer"),
            "The present state of transfers, then every change",
            || get(follow),
        )
    },
    Route::post(
        "/v1/fabric/invite",
        Content::Json("InviteRequest"),
        Content::Json("Invitation"),
        "Make a ticket",
        || post(invite),
    ),
    Route::post(
        "/v1/fabric/admit",
        Content::Json("AdmitRequest"),
        Content::Json("Admission"),
        "Make a certificate for a peer whose key is known",
        || post(admit),
    ),
    Route::get(
        "/v1/fabric/members",
        Content::List("Member"),
        "The members of the mesh",
        || get(members),
    ),
    Route::post(
        "/v1/fabric/revoke",
        Content::Json("RevokeRequest"),
        Content::Json("Revoked"),
        "Revoke every certificate of a name",
        || post(revoke),
    ),
    Route::post(
        "/v1/fabric/shutdown",
        Content::Nothing,
        Content::Json("Done"),
        "Drain and stop the daemon",
        || post(shutdown),
    ),
    Route::get(
        "/metrics",
        Content::Text,
        "Metrics in Prometheus' text format",
        || get(metrics),
    ),
    Route::get("/openapi.json", Content::AnyJson, "This document", || {
        get(document)
    }),
];

type Answer<T> = Result<Json<T>, ApiError>;
type App = State<Arc<Api>>;

async fn status(State(api): App) -> Answer<Status> {
    Ok(Json(api.control.status().await?))
}

async fn nodes(State(api): App) -> Answer<Vec<NodeRecord>> {
    Ok(Json(api.control.nodes().await?))
}

async fn node(State(api): App, Path(id): Path<String>) -> Answer<NodeRecord> {
    let id = NodeId::new(id).map_err(|error| ApiError::of(ErrorCode::Usage, &error))?;
    Ok(Json(api.control.node(id).await?))
}

async fn register(State(api): App, request: Request) -> Answer<Registered> {
    let node: NodeSignature = json(request).await?;
    node.validate()
        .map_err(|error| ApiError::of(ErrorCode::Usage, &error).named("InvalidNodeError"))?;
    Ok(Json(api.control.register(node).await?))
}

async fn peers(State(api): App) -> Answer<Vec<PeerRecord>> {
    Ok(Json(api.control.peers().await?))
}

async fn ping(State(api): App, request: Request) -> Answer<PingReport> {
    let PingRequest {
        node,
        count,
        size,
        timeout_ms,
    } = json(request).await?;
    within("count", u64::from(count), 1, u64::from(PING_COUNT_MAX))?;
    within("size", u64::from(size), 1, u64::from(PING_SIZE_BYTES_MAX))?;
    within("timeout_ms", timeout_ms, 1, PING_TIMEOUT_MS_MAX)?;
    let ping = Ping {
        node,
        count,
        size_bytes: size,
        timeout: Duration::from_millis(timeout_ms),
    };
    let report = tokio::time::timeout(HTTP_PING_MAX, api.control.ping(ping)).await;
    let late = || {
        ApiError::new(ErrorCode::TimedOut, "the ping took too long").hint("ask for fewer echoes at a time")
    };
    Ok(Json(report.unwrap_or_else(|_| Err(late()))?))
}

async fn send(State(api): App, request: Request) -> Answer<Accepted> {
    match content_type(request.headers()) {
        JSON_TYPE => send_path(&api, json(request).await?).await,
        BYTES_TYPE => send_body(&api, request).await,
        _ => Err(ApiError::new(
            ErrorCode::Usage,
            "the body is neither an order as application/json nor a file as application/octet-stream",
        )),
    }
}

async fn send_path(api: &Api, mut order: SendOrder) -> Answer<Accepted> {
    check_wait(&order)?;
    let missing = || {
        ApiError::new(ErrorCode::Usage, "the order has no path")
            .hint("to upload a file, send it as application/octet-stream with the order in the query")
    };
    let path = order.path.take().ok_or_else(missing)?;
    let roots = Arc::clone(&api.send_roots);
    let opened = tokio::task::spawn_blocking(move || source::below_roots(&roots, &path));
    let source = opened.await.map_err(|_| ApiError::interrupted())??;
    let transfer_id = api.control.send(request_of(order, source)?).await?;
    Ok(Json(Accepted { transfer_id }))
}

async fn send_body(api: &Api, request: Request) -> Answer<Accepted> {
    let Query(mut order): Query<SendOrder> = query(&request)?;
    check_wait(&order)?;
    if order.path.is_some() {
        return Err(ApiError::new(
            ErrorCode::Usage,
            "an upload is its body and has no path",
        ));
    }
    let missing = || ApiError::new(ErrorCode::Usage, "an upload needs a name");
    let name = order.name.take().ok_or_else(missing)?;
    // Checked before the body is read: a refusal after gigabytes is unkind.
    order.name = Some(source::arrival_name(Some(name), std::path::Path::new("/"))?);
    let uploaded = upload::receive(api, request.into_body()).await?;
    let path = uploaded.path.clone();
    let begun = match request_of(order, uploaded) {
        Ok(request) => api.control.send(request).await,
        Err(error) => Err(error),
    };
    match begun {
        Ok(transfer_id) => Ok(Json(Accepted { transfer_id })),
        Err(error) => {
            upload::discard(&path);
            Err(error)
        }
    }
}

fn check_wait(order: &SendOrder) -> Result<(), ApiError> {
    within("wait_ms", order.wait_ms, 0, HTTP_WAIT_MS_MAX)
}

/// Joins what was ordered with the bytes that were opened for it.
pub(super) fn request_of(order: SendOrder, source: SendSource) -> Result<SendRequest, ApiError> {
    Ok(SendRequest {
        name: source::arrival_name(order.name, &source.path)?,
        source,
        to: order.to,
        data_type: order.data_type,
        priority: order.priority,
        timeout: order.timeout_ms.map(Duration::from_millis),
        wait: Duration::from_millis(order.wait_ms),
        sync: order.sync,
    })
}

async fn transfers(State(api): App) -> Answer<Vec<Transfer>> {
    Ok(Json(api.control.transfers().await?))
}

async fn transfer(State(api): App, Path(id): Path<String>) -> Answer<Transfer> {
    Ok(Json(api.control.transfer(transfer_id(&id)?).await?))
}

async fn cancel(State(api): App, Path(id): Path<String>) -> Answer<Transfer> {
    Ok(Json(api.control.cancel(transfer_id(&id)?).await?))
}

async fn resume(State(api): App, Path(id): Path<String>) -> Answer<Transfer> {
    Ok(Json(api.control.resume(transfer_id(&id)?).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Follow {
    transfer: Option<String>,
}

async fn follow(State(api): App, request: Request) -> Result<Response, ApiError> {
    let Query(Follow { transfer }) = query(&request)?;
    let only = transfer.as_deref().map(transfer_id).transpose()?;
    if let Some(id) = only {
        // An unknown transfer is an error with its status, not a stream that ends at once.
        api.control.transfer(id).await?;
    }
    let permit = Arc::clone(&api.followers)
        .try_acquire_owned()
        .map_err(|_| ApiError::new(ErrorCode::Busy, "too many event streams are open"))?;
    Ok(events::stream(Arc::clone(&api.control), only, api.stopping.clone(), permit).into_response())
}

async fn invite(State(api): App, request: Request) -> Answer<Invitation> {
    let invite: InviteRequest = json(request).await?;
    within("expires_seconds", invite.expires_seconds, 1, INVITE_SECONDS_MAX)?;
    within("uses", u64::from(invite.uses), 1, u64::from(INVITE_USES_MAX))?;
    Ok(Json(api.control.invite(invite).await?))
}

async fn admit(State(api): App, request: Request) -> Answer<Admission> {
    Ok(Json(api.control.admit(json(request).await?).await?))
}

async fn members(State(api): App) -> Answer<Vec<Member>> {
    Ok(Json(api.control.members().await?))
}

async fn revoke(State(api): App, request: Request) -> Answer<Revoked> {
    let RevokeRequest { name } = json(request).await?;
    Ok(Json(api.control.revoke(name).await?))
}

async fn shutdown(State(api): App) -> Answer<Done> {
    api.control.request_shutdown();
    Ok(Json(Done { done: true }))
}

async fn metrics(State(api): App) -> Result<Response, ApiError> {
    let text = api.control.metrics().await?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

async fn document() -> Json<serde_json::Value> {
    Json(openapi::document())
}

/// Answers a request for a route that does not exist.
pub(super) async fn no_such_route(request: Request) -> ApiError {
    ApiError::new(
        ErrorCode::NotFound,
        format!("there is no route {}", request.uri().path()),
    )
    .hint("/openapi.json lists every route")
}

/// Answers a request for a route that exists with another method.
pub(super) async fn no_such_method(request: Request) -> ApiError {
    ApiError::new(
        ErrorCode::MethodNotAllowed,
        format!("{} has no {}", request.uri().path(), request.method()),
    )
}

fn transfer_id(text: &str) -> Result<TransferId, ApiError> {
    text.parse()
        .map_err(|error: hyperfabric_protocol::id::IdError| ApiError::of(ErrorCode::Usage, &error))
}

fn within(name: &str, value: u64, min: u64, max: u64) -> Result<(), ApiError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::Usage,
        format!("{name} cannot be {value}: expected {min} to {max}"),
    ))
}

fn content_type(headers: &HeaderMap) -> &str {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

fn query<T: DeserializeOwned>(request: &Request) -> Result<Query<T>, ApiError> {
    Query::try_from_uri(request.uri()).map_err(|error| ApiError::new(ErrorCode::Usage, error.body_text()))
}

/// Reads a JSON body of bounded size.
async fn json<T: DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    if content_type(request.headers()) != JSON_TYPE {
        return Err(ApiError::new(
            ErrorCode::Usage,
            "the body must be application/json",
        ));
    }
    let body = axum::body::to_bytes(request.into_body(), JSON_BYTES_MAX)
        .await
        .map_err(|_| {
            ApiError::new(
                ErrorCode::TooLarge,
                format!("the body is cut off or larger than {JSON_BYTES_MAX} bytes"),
            )
        })?;
    serde_json::from_slice(&body).map_err(|error| {
        ApiError::new(
            ErrorCode::Usage,
            format!("the body is not what it should be: {error}"),
        )
    })
}
