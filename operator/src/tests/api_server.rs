//! An API server in memory: enough of its semantics for the operator. Objects have uid, generation and resource version;
//! status is written through its subresource only; server-side apply removes what its manager no longer applies; deletion
//! honours preconditions, and pods and claims go in two steps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use axum::http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Map, Value, json};

/// `resource/namespace/name`.
pub(super) type Key = (String, String, String);

/// The objects.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) objects: BTreeMap<Key, Value>,
    /// What each manager applied last.
    applied: BTreeMap<(Key, String), Value>,
    /// Reasons of events.
    pub(super) events: Vec<String>,
    revision: u64,
    /// The operator dies at this request that changes something, before it or (true) after it.
    pub(super) dies_at: Option<(u64, bool)>,
    pub(super) deaths: u32,
    pub(super) writes: u64,
}

/// A handle that tests and the client share.
#[derive(Clone, Debug, Default)]
pub(super) struct ApiServer(pub(super) Arc<Mutex<Objects>>);

impl ApiServer {
    /// A client of it.
    pub(super) fn client(&self) -> Client {
        let server = self.clone();
        Client::new(
            tower::service_fn(move |request: Request<Body>| {
                let server = server.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect_bytes().await.expect("a body in memory");
                    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                    let query = parts.uri.query().unwrap_or("").to_owned();
                    let (status, answer) = server.0.lock().expect("no panic while it is held").serve(
                        &parts.method,
                        parts.uri.path(),
                        &query,
                        &body,
                    );
                    let bytes = serde_json::to_vec(&answer).expect("JSON");
                    Ok::<_, std::convert::Infallible>(
                        Response::builder()
                            .status(status)
                            .body(Body::from(bytes))
                            .expect("a response"),
                    )
                }
            }),
            "shop",
        )
    }
}

impl Objects {
    pub(super) fn get(&self, resource: &str, name: &str) -> Option<&Value> {
        self.objects
            .get(&(resource.to_owned(), "shop".to_owned(), name.to_owned()))
    }

    pub(super) fn names(&self, resource: &str) -> BTreeSet<String> {
        self.objects
            .keys()
            .filter(|key| key.0 == resource)
            .map(|key| key.2.clone())
            .collect()
    }

    /// Writes as a person or the kubelet would.
    pub(super) fn edit(&mut self, resource: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let key = (resource.to_owned(), "shop".to_owned(), name.to_owned());
        let object = self.objects.get_mut(&key).expect("the object exists");
        let spec = object["spec"].clone();
        change(object);
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        if object["spec"] != spec {
            let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
            object["metadata"]["generation"] = json!(generation + 1);
        }
    }

    fn serve(&mut self, method: &Method, path: &str, query: &str, body: &Value) -> (u16, Value) {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let at = segments
            .iter()
            .position(|segment| *segment == "namespaces")
            .expect("namespaced paths only");
        let (namespace, resource) = (segments[at + 1].to_owned(), segments[at + 2].to_owned());
        let name = segments.get(at + 3).map(ToString::to_string);
        let subresource = segments.get(at + 4).copied();
        if resource == "events" {
            self.events.push(body["reason"].as_str().unwrap_or_default().to_owned());
            return (201, body.clone());
        }
        if *method == Method::GET {
            return self.answer(method, resource, namespace, name, subresource, query, body);
        }
        self.writes += 1;
        match self.dies_at {
            Some((at, after)) if at == self.writes => {
                self.deaths += 1;
                if after {
                    self.answer(method, resource, namespace, name, subresource, query, body);
                }
                refuse(500, "InternalError", "the operator dies here")
            }
            _ => self.answer(method, resource, namespace, name, subresource, query, body),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "a request, taken apart")]
    fn answer(
        &mut self,
        method: &Method,
        resource: String,
        namespace: String,
        name: Option<String>,
        subresource: Option<&str>,
        query: &str,
        body: &Value,
    ) -> (u16, Value) {
        match (method.as_str(), name) {
            ("GET", None) => self.list(&resource, &namespace, query),
            ("GET", Some(name)) => match self.objects.get(&(resource, namespace, name)) {
                Some(object) => (200, object.clone()),
                None => refuse(404, "NotFound", "not found"),
            },
            ("POST", None) => {
                let name = body["metadata"]["name"].as_str().expect("a name").to_owned();
                self.create((resource, namespace, name), body.clone())
            }
            ("PATCH", Some(name)) => self.apply((resource, namespace, name), subresource, query, body),
            ("DELETE", Some(name)) => self.delete(&(resource, namespace, name), body),
            other => panic!("the operator made a request that this server does not know: {other:?}"),
        }
    }

    fn list(&self, resource: &str, namespace: &str, query: &str) -> (u16, Value) {
        let query = query.replace("%3D", "=").replace("%2C", ",").replace("%2F", "/");
        let selector = query
            .split('&')
            .find_map(|part| part.strip_prefix("labelSelector="))
            .unwrap_or("");
        let wanted: Vec<(&str, &str)> = selector.split(',').filter_map(|pair| pair.split_once('=')).collect();
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(key, _)| key.0 == resource && key.1 == namespace)
            .map(|(_, object)| object)
            .filter(|object| {
                wanted
                    .iter()
                    .all(|(key, value)| object["metadata"]["labels"][*key] == json!(value))
            })
            .collect();
        (
            200,
            json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}),
        )
    }

    fn create(&mut self, key: Key, mut object: Value) -> (u16, Value) {
        if self.objects.contains_key(&key) {
            return refuse(409, "AlreadyExists", "it exists already");
        }
        self.revision += 1;
        object["metadata"]["uid"] = json!(format!("u-{}", self.revision));
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        object["metadata"]["generation"] = json!(1);
        object["metadata"]["namespace"] = json!(key.1);
        self.objects.insert(key, object.clone());
        (201, object)
    }

    fn apply(&mut self, key: Key, subresource: Option<&str>, query: &str, body: &Value) -> (u16, Value) {
        let manager = query
            .split('&')
            .find_map(|part| part.strip_prefix("fieldManager="))
            .expect("a manager")
            .to_owned();
        let Some(present) = self.objects.get(&key) else {
            assert!(subresource.is_none(), "a subresource of nothing");
            self.applied.insert((key.clone(), manager), body.clone());
            return self.create(key, body.clone());
        };
        let mut object = present.clone();
        let read = &body["metadata"]["resourceVersion"];
        if read.is_string() && *read != object["metadata"]["resourceVersion"] {
            return refuse(409, "Conflict", "the object has been modified");
        }
        let owned = match subresource {
            Some(part) => json!({part: body[part]}),
            None => {
                let mut owned = body.clone();
                if let Some(fields) = owned.as_object_mut() {
                    fields.remove("status");
                }
                owned
            }
        };
        if let Some(before) = self.applied.insert((key.clone(), manager), owned.clone()) {
            drop_missing(&mut object, &before, &owned);
        }
        merge(&mut object, &owned);
        object["metadata"]["resourceVersion"] = present["metadata"]["resourceVersion"].clone();
        if object != *present {
            self.revision += 1;
            object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
            self.objects.insert(key, object.clone());
        }
        (200, object)
    }

    fn delete(&mut self, key: &Key, body: &Value) -> (u16, Value) {
        let Some(object) = self.objects.get_mut(key) else {
            return refuse(404, "NotFound", "not found");
        };
        let expected = &body["preconditions"]["uid"];
        if expected.is_string() && *expected != object["metadata"]["uid"] {
            return refuse(409, "Conflict", "the uid in the precondition does not match");
        }
        if matches!(key.0.as_str(), "pods" | "persistentvolumeclaims") {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            return (200, object.clone());
        }
        let gone = self.objects.remove(key).expect("it was there");
        self.applied.retain(|(other, _), _| other != key);
        (200, gone)
    }
}

fn refuse(code: u16, reason: &str, message: &str) -> (u16, Value) {
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}),
    )
}

/// Removes what a manager applied before and applies no more.
fn drop_missing(object: &mut Value, before: &Value, now: &Value) {
    let (Some(fields), Some(before)) = (object.as_object_mut(), before.as_object()) else {
        return;
    };
    for (name, old) in before {
        match now.get(name) {
            None => {
                fields.remove(name);
            }
            Some(new) => {
                if let Some(field) = fields.get_mut(name) {
                    drop_missing(field, old, new);
                }
            }
        }
    }
}

/// Objects are merged; everything else, lists too, is replaced.
fn merge(object: &mut Value, applied: &Value) {
    match applied {
        Value::Object(applied) => {
            if !object.is_object() {
                *object = Value::Object(Map::new());
            }
            for (name, value) in applied {
                merge(&mut object[name], value);
            }
        }
        other => other.clone_into(object),
    }
}
