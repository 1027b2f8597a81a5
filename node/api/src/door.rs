//! Which keyspace a client means: by the port that it came to, or by the name under which it reached us.
//!
//! A request names its host as HTTP/2's `:authority` (HTTP/1's `Host`). If the host, or its first label, is a keyspace's name, the
//! request is for that keyspace: `orders`, `orders:2379` and `orders.db.svc.cluster.local` all mean `orders`. Addresses, and names
//! that are no keyspace's, mean the default one, so that a client who knows nothing of keyspaces sees a plain etcd. (So does, for a moment,
//! a new keyspace's name at a member that has not heard of it. Whoever cannot wait until every member has gives it a port.)

use crate::server::ClientServer;
use http::Request;
use http::uri::Authority;
use hyper::body::Incoming;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// The keyspaces behind one port, by name. Clones are the same directory.
#[derive(Clone)]
pub struct Directory(Arc<Listed>);

struct Listed {
    default: ClientServer,
    named: RwLock<BTreeMap<String, ClientServer>>,
}

impl Directory {
    /// Everything goes to this one.
    #[must_use]
    pub fn new(default: ClientServer) -> Self {
        Self(Arc::new(Listed {
            default,
            named: RwLock::default(),
        }))
    }

    /// Lists a keyspace under its name, in small letters.
    pub fn put(&self, name: &str, server: ClientServer) {
        let mut named = self.0.named.write().unwrap_or_else(PoisonError::into_inner);
        named.insert(name.to_owned(), server);
    }

    /// The names under which requests find their keyspace.
    #[must_use]
    pub fn names(&self) -> BTreeSet<String> {
        let named = self.0.named.read().unwrap_or_else(PoisonError::into_inner);
        named.keys().cloned().collect()
    }

    /// Forgets a name; what comes under it goes to the default keyspace from now on.
    pub fn remove(&self, name: &str) {
        let mut named = self.0.named.write().unwrap_or_else(PoisonError::into_inner);
        named.remove(name);
    }

    /// Whom a request is for.
    fn server<B>(&self, request: &Request<B>) -> ClientServer {
        let named = self.0.named.read().unwrap_or_else(PoisonError::into_inner);
        // Nearly always there is only the one.
        if named.is_empty() {
            return self.0.default.clone();
        }
        let listed = host(request).and_then(|host| named.get(&*label(&host)?));
        listed.unwrap_or(&self.0.default).clone()
    }
}

/// Where the client believes to have come to.
fn host<B>(request: &Request<B>) -> Option<Cow<'_, str>> {
    if let Some(host) = request.uri().host() {
        return Some(Cow::Borrowed(host));
    }
    let text = request.headers().get(http::header::HOST)?;
    let authority = Authority::try_from(text.as_bytes()).ok()?;
    Some(Cow::Owned(authority.host().to_owned()))
}

/// A host's first label, in small letters; none if it is an address.
fn label(host: &str) -> Option<Cow<'_, str>> {
    if host.starts_with('[') || host.parse::<IpAddr>().is_ok() {
        return None;
    }
    let label = host.split('.').next().unwrap_or_default();
    Some(if label.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(label.to_ascii_lowercase())
    } else {
        Cow::Borrowed(label)
    })
}

/// Where a connection came in. Cheap to clone.
#[derive(Clone)]
pub struct Door {
    behind: Behind,
    open: watch::Receiver<()>,
}

#[derive(Clone)]
enum Behind {
    One(ClientServer),
    ByName(Directory),
}

/// Keeps a door open. Once it is dropped, connections that came in by that door finish their requests and end.
#[derive(Debug)]
pub struct DoorKeeper(#[expect(dead_code, reason = "held for its end")] watch::Sender<()>);

impl Door {
    /// To one keyspace, whatever name the client uses.
    #[must_use]
    pub fn to(server: ClientServer) -> (Self, DoorKeeper) {
        Self::new(Behind::One(server))
    }

    /// To all keyspaces, by name.
    #[must_use]
    pub fn by_name(directory: Directory) -> (Self, DoorKeeper) {
        Self::new(Behind::ByName(directory))
    }

    fn new(behind: Behind) -> (Self, DoorKeeper) {
        let (keeper, open) = watch::channel(());
        (Self { behind, open }, DoorKeeper(keeper))
    }

    /// Returns when it is open no more.
    pub(crate) async fn shut(&mut self) {
        // Nothing is ever sent.
        while self.open.changed().await.is_ok() {}
    }
}

impl hyper::service::Service<Request<Incoming>> for Door {
    type Response = <ClientServer as hyper::service::Service<Request<Incoming>>>::Response;
    type Error = <ClientServer as hyper::service::Service<Request<Incoming>>>::Error;
    type Future = <ClientServer as hyper::service::Service<Request<Incoming>>>::Future;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        match &self.behind {
            Behind::One(server) => server.call(request),
            Behind::ByName(directory) => directory.server(&request).call(request),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_means_its_first_label_and_an_address_means_nobody() {
        let request = |uri: &str, host: &str| {
            let mut request = Request::new(());
            *request.uri_mut() = uri.parse().expect("a uri");
            if !host.is_empty() {
                request.headers_mut().insert("host", host.parse().expect("a header"));
            }
            request
        };
        let named = |uri, header| {
            let request = request(uri, header);
            let host = host(&request)?;
            label(&host).map(Cow::into_owned)
        };
        for (uri, header, expected) in [
            ("http://orders/x", "", Some("orders")),
            ("http://orders:2379/x", "", Some("orders")),
            ("http://Orders.db.svc.cluster.local:2379/x", "", Some("orders")),
            // HTTP/1, and a client that says both: the first is what HTTP/2 means.
            ("/health", "events.db:2379", Some("events")),
            ("http://orders:2379/x", "events", Some("orders")),
            ("http://127.0.0.1:2379/x", "", None),
            ("http://[::1]:2379/x", "", None),
            ("/health", "10.0.0.1", None),
            ("/health", "", None),
            ("/health", "what is this", None),
        ] {
            assert_eq!(named(uri, header).as_deref(), expected, "{uri} {header}");
        }
    }
}
