//! The keyspaces of a node as endpoints: each is found by its name on the client port, and by a port of its own if it has one.
//!
//! Contract: [`Endpoints::update`] makes what there is what is wanted. Names and ports come and go at run time; a keyspace that goes, or
//! changes its port, lets the requests under way finish. A port that cannot be had is tried again with every update, and stands in
//! nobody else's way.

use crate::atlas::Chart;
use crate::clients::{self, Arrival};
use althing_api::health::HealthSwitch;
use althing_api::keyspace::Keyspace;
use althing_api::{ClientServer, Directory, Door, DoorKeeper, Limits, Observer};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Between two looks at what is wanted: a new keyspace takes longer to be made.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What is wanted of a keyspace's endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wanted {
    /// The keyspace's number. Another number under the same name is another keyspace.
    pub(crate) id: u32,
    /// Its port, if it has one.
    pub(crate) port: Option<u16>,
}

/// The endpoints that the shard map wants. A keyspace that is being made or dropped has one too: what is meant for it must not end up
/// in the default one.
pub(crate) fn wanted(chart: &Chart) -> BTreeMap<String, Wanted> {
    let keyspaces = chart.state.keyspaces.iter().map(|(id, record)| {
        let wanted = Wanted {
            id: id.0,
            port: record.port,
        };
        (record.name.clone(), wanted)
    });
    keyspaces.collect()
}

/// A member's URL for clients, as clients of a keyspace with a port of its own must hear it: those who take their endpoints from the
/// member list would otherwise end up in another keyspace.
pub(crate) fn with_port(url: &str, port: u16) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    // An IPv6 address has colons too, within brackets.
    let host = match authority.rfind(':') {
        Some(at) if !authority[at..].contains(']') => &authority[..at],
        Some(_) | None => authority,
    };
    format!("{scheme}://{host}:{port}{path}")
}

/// How keyspaces are served.
pub(crate) struct Front {
    /// The client port's directory.
    pub(crate) directory: Directory,
    /// The default keyspace's server: it is found under every name that nobody else has.
    pub(crate) default: ClientServer,
    /// Its number.
    pub(crate) default_id: u32,
    /// The address that ports are bound at.
    pub(crate) ip: IpAddr,
    /// The threads.
    pub(crate) seats: Vec<mpsc::Sender<Arrival>>,
    /// What a client may ask for.
    pub(crate) limits: Limits,
    /// Who sees all requests.
    pub(crate) observer: Arc<dyn Observer>,
}

/// What is open.
pub(crate) struct Endpoints<F> {
    front: Front,
    /// Gives a keyspace by its number.
    keyspace: F,
    open: BTreeMap<String, Endpoint>,
}

struct Endpoint {
    id: u32,
    server: ClientServer,
    /// None for the default keyspace, whose health is told elsewhere.
    health: Option<(Arc<dyn Keyspace>, HealthSwitch)>,
    port: Option<Port>,
    /// The port that could not be had and was complained about.
    refused: Option<u16>,
}

/// A port that is listened on, until it is dropped.
struct Port {
    number: u16,
    accepting: AbortHandle,
    _open: DoorKeeper,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl<F: Fn(u32) -> Arc<dyn Keyspace>> Endpoints<F> {
    /// Nothing but the client port. `keyspace` gives a keyspace by its number.
    pub(crate) fn new(front: Front, keyspace: F) -> Self {
        Self {
            front,
            keyspace,
            open: BTreeMap::new(),
        }
    }

    /// Follows what is wanted, and keeps the health services up to date, until the task is aborted; that closes the ports.
    pub(crate) async fn run(mut self, wanted: impl Fn() -> BTreeMap<String, Wanted>) {
        loop {
            self.update(&wanted()).await;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Closes what is not wanted any more and opens what is.
    pub(crate) async fn update(&mut self, wanted: &BTreeMap<String, Wanted>) {
        let directory = &self.front.directory;
        self.open.retain(|name, endpoint| {
            let stays = wanted.get(name).is_some_and(|wanted| wanted.id == endpoint.id);
            if !stays {
                tracing::info!(keyspace = name, "is no endpoint any more");
                directory.remove(name);
            }
            stays
        });
        for (name, wanted) in wanted {
            if !self.open.contains_key(name) {
                let endpoint = self.endpoint(name, wanted.id).await;
                self.open.insert(name.clone(), endpoint);
            }
        }
        let port = |name: &str| wanted.get(name).and_then(|wanted| wanted.port);
        // Two may have changed ports with each other.
        for (name, endpoint) in &mut self.open {
            endpoint.port.take_if(|open| Some(open.number) != port(name));
        }
        for (name, endpoint) in &mut self.open {
            if endpoint.port.is_none()
                && let Some(number) = port(name)
            {
                endpoint.listen(name, number, &self.front).await;
            }
            if let Some((keyspace, health)) = &endpoint.health {
                health.refresh(&**keyspace).await;
            }
        }
    }

    async fn endpoint(&self, name: &str, id: u32) -> Endpoint {
        let front = &self.front;
        if id == front.default_id {
            return Endpoint {
                id,
                server: front.default.clone(),
                health: None,
                port: None,
                refused: None,
            };
        }
        let keyspace = (self.keyspace)(id);
        let (server, health) =
            althing_api::server(Arc::clone(&keyspace), front.limits, Arc::clone(&front.observer)).await;
        front.directory.put(name, server.clone());
        tracing::info!(keyspace = name, "is an endpoint now");
        Endpoint {
            id,
            server,
            health: Some((keyspace, health)),
            port: None,
            refused: None,
        }
    }
}

impl Endpoint {
    async fn listen(&mut self, name: &str, number: u16, front: &Front) {
        let addr = SocketAddr::new(front.ip, number);
        match TcpListener::bind(addr).await {
            Ok(listener) => {
                tracing::info!(keyspace = name, %addr, "listens for clients of one keyspace");
                let (door, open) = Door::to(self.server.clone());
                let accepting = tokio::spawn(clients::accept(listener, front.seats.clone(), door)).abort_handle();
                self.port = Some(Port {
                    number,
                    accepting,
                    _open: open,
                });
                self.refused = None;
            }
            Err(error) if self.refused == Some(number) => {
                tracing::debug!(keyspace = name, %addr, %error, "still cannot listen");
            }
            Err(error) => {
                self.refused = Some(number);
                tracing::warn!(keyspace = name, %addr, %error, "cannot listen for clients of this keyspace; trying on. Is the port taken?");
            }
        }
    }
}

#[cfg(test)]
mod tests;
