//! The bed's network: a bridge in the control machine, a cable from it to each node, routes to each node's pods.

use std::process::Command;

use super::layout::{CONTROL, Node, SERVICES};
use crate::command::{run, run_with_input};
use crate::error::Result;
use crate::machine::Machine;

/// Lays cables and routes between freshly booted machines.
///
/// # Errors
/// If the kernel refuses one of them.
pub(super) fn connect(control: &Machine, nodes: &[(Node, &Machine)]) -> Result<()> {
    let mut at_control = format!(
        "link add br0 type bridge\n\
         addr add {CONTROL}/24 dev br0\n\
         link set br0 up\n"
    );
    for (node, machine) in nodes {
        let port = node.port();
        at_control += &format!(
            "link add {port} type veth peer name eth0 netns {}\n\
             link set {port} master br0 up\n",
            machine.init.pid
        );
    }
    for node in Node::ALL {
        at_control += &format!("route add {} via {}\n", node.pods(), node.address());
    }
    at_control += &service_route("add", Node::N1);
    // `netns <pid>` is resolved by the process that runs `ip`, so that one must see the host's pids.
    batch(control, &at_control)?;
    for (node, machine) in nodes {
        let mut at_node = format!(
            "addr add {}/24 dev eth0\n\
             link set eth0 up\n\
             route add default via {CONTROL}\n",
            node.address()
        );
        for other in Node::ALL.into_iter().filter(|other| other != node) {
            at_node += &format!("route add {} via {}\n", other.pods(), other.address());
        }
        batch(machine, &at_node)?;
    }
    Ok(())
}

/// Sends the control machine's traffic for Services through `node`, whose kube-proxy translates it. (The control machine
/// is not a node and has no kube-proxy.)
///
/// # Errors
/// If the kernel refuses.
pub(super) fn route_services_through(control: &Machine, node: Node) -> Result<()> {
    batch(control, &service_route("replace", node))
}

/// Cuts or mends a node's cable. Cut means that frames vanish without a word: the port stops forwarding, and neither end
/// sees its carrier go, which is how most real partitions look.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn set_cable(control: &Machine, node: Node, up: bool) -> Result<()> {
    // Bridge port states: 0 is disabled, 3 is forwarding (linux/if_bridge.h).
    let state = if up { "3" } else { "0" };
    run(control
        .enter_network("bridge")
        .args(["link", "set", "dev", &node.port(), "state", state]))
    .map(drop)
}

fn service_route(verb: &str, node: Node) -> String {
    format!("route {verb} {SERVICES} via {}\n", node.address())
}

fn batch(machine: &Machine, lines: &str) -> Result<()> {
    let mut command: Command = machine.enter_network("ip");
    run_with_input(command.args(["-batch", "-"]), lines).map(drop)
}
