//! What the workers of a supervisor share: where things are declared and shown, who has which ports, and how a node is run.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use althing_crds::ValidatedCluster;
use althing_plan::model::Ordinal;

use super::ask::Asker;
use super::files;
use super::hub::Hub;
use super::layout::{ClusterKey, MemberKey};
use super::node_args::{Program, node_args, workload_hash};
use super::ports::{PortBook, Ports};
use super::runner::Commands;
use crate::error::Error;
use crate::ui::Ui;

/// Everything that the workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What is declared and seen.
    pub(crate) hub: Arc<Hub>,
    /// Where it is shown.
    pub(crate) ui: Arc<Ui>,
    /// The node program.
    pub(crate) program: Program,
    /// Who has which ports.
    pub(crate) ports: Mutex<PortBook>,
    /// Where the search for ports begins.
    pub(crate) first_port: u16,
    /// Asks nodes.
    pub(crate) asker: Asker,
}

impl Shared {
    /// A member's ports, if it has any yet.
    pub(super) fn ports(&self, member: &MemberKey) -> Option<Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).get(member)
    }

    /// A member's ports; it gets some if it has none.
    fn allot(&self, member: &MemberKey) -> Result<Ports, Error> {
        let mut book = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let known = book.get(member).is_some();
        let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        let ports = book
            .allot(member, self.first_port, free)
            .ok_or_else(|| Error::NoPorts {
                member: member.node_name(),
                first: self.first_port,
            })?;
        if !known {
            files::write_json(&self.hub.layout().ports(), &*book)?;
        }
        Ok(ports)
    }

    /// Lets the ports of members that are gone be taken by others.
    pub(super) fn release(&self, members: &[MemberKey]) -> Result<(), Error> {
        let mut book = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        for member in members {
            book.release(member);
        }
        files::write_json(&self.hub.layout().ports(), &*book)
    }
}

/// How the nodes of one cluster are run.
pub(super) struct NodeCommands<'a> {
    pub(super) shared: &'a Shared,
    pub(super) key: &'a ClusterKey,
    pub(super) cluster: &'a ValidatedCluster,
}

impl Commands for NodeCommands<'_> {
    fn program(&self) -> &Path {
        &self.shared.program.path
    }

    fn args(&self, ordinal: Ordinal) -> Result<Vec<String>, Error> {
        let member = MemberKey {
            cluster: self.key.clone(),
            ordinal,
        };
        let ports = self.shared.allot(&member)?;
        Ok(node_args(
            self.cluster,
            &member,
            ports,
            &self.shared.hub.layout().volume(&member),
        ))
    }

    fn workload_hash(&self) -> String {
        workload_hash(self.cluster, &self.shared.program)
    }
}
