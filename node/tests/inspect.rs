//! What `althing-node inspect` says of volumes, sound and broken, and that it leaves them alone.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::Node;

fn inspect(dir: &Path, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_althing-node"))
        .env_clear()
        .args(["inspect", "--data-dir"])
        .arg(dir)
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Every file with its content.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for item in std::fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            all.extend(content(&path));
        } else {
            all.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    all
}

fn damage(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x55;
    std::fs::write(path, bytes).unwrap();
}

async fn volume() -> Node {
    let mut node = Node::start("orders-0");
    node.bootstrap().await;
    for number in 0..40 {
        node.put(&format!("k{number}"), "v").await.unwrap();
    }
    assert!(node.terminate().success());
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_volume_is_described_and_left_as_it_is() {
    let node = volume().await;
    let dir = node.data_dir();
    let before = content(&dir);
    let said = inspect(&dir, &[]);
    for expected in [
        "identity  orders-0, member ",
        "cluster 00000000000000c1",
        "0000000000000001.wal",
        "<- written to",
        "revision 41",
        "40 keys",
        "voter ",
        "verdict   Start",
        "next      start the node",
    ] {
        assert!(said.contains(expected), "{expected:?} is missing:\n{said}");
    }
    let json: serde_json::Value = serde_json::from_str(&inspect(&dir, &["-o", "json"])).unwrap();
    assert_eq!(json["verdict"]["action"], "start");
    assert_eq!(json["groups"][1]["state"]["read"]["keys"], 40);
    assert_eq!(json["identity"]["read"]["name"], "orders-0");
    assert_eq!(content(&dir), before, "nothing was changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_located_and_the_rest_is_still_shown() {
    let node = volume().await;
    let dir = node.data_dir();
    damage(&dir.join("wal/0000000000000001.wal"), 500);
    let before = content(&dir);
    let said = inspect(&dir, &[]);
    for expected in [
        "BROKEN",
        "0000000000000001.wal, byte ",
        "verdict   Refuse",
        "remove this member",
        "orders-0",
    ] {
        assert!(said.contains(expected), "{expected:?} is missing:\n{said}");
    }
    assert_eq!(content(&dir), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_state_and_a_damaged_identity_are_told() {
    let mut node = volume().await;
    let dir = node.data_dir();
    std::fs::write(dir.join("state/sled/conf"), b"this is not a sled configuration").unwrap();
    let before = content(&dir);
    let said = inspect(&dir, &[]);
    assert!(said.contains("verdict   Rebuild") && said.contains("BROKEN"), "{said}");
    assert_eq!(content(&dir), before);
    // And so it happens.
    node.run();
    node.ready().await;
    assert_eq!(node.get("k39").await.unwrap().as_deref(), Some("v"));
    assert!(node.terminate().success());
    let said = inspect(&dir, &[]);
    assert!(
        said.contains("earlier damage: quarantine-1") && said.contains("verdict   Start"),
        "{said}"
    );

    std::fs::write(dir.join("identity.json"), b"{").unwrap();
    let said = inspect(&dir, &[]);
    assert!(
        said.contains("identity  BROKEN") && said.contains("verdict   Refuse"),
        "{said}"
    );
    assert!(said.contains("40 keys"), "what can be read is shown: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_in_use_is_looked_at_from_outside_and_goes_on() {
    let node = Node::start("orders-0");
    node.bootstrap().await;
    node.put("k", "v").await.unwrap();
    let said = inspect(&node.data_dir(), &[]);
    assert!(
        said.contains("in use by a process") && said.contains("verdict   InUse"),
        "{said}"
    );
    assert!(said.contains("shard 1") && said.contains("/v1/status"), "{said}");
    node.put("k", "w").await.unwrap();
}

#[test]
fn an_empty_directory_and_a_missing_one_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let said = inspect(dir.path(), &[]);
    assert!(
        said.contains("verdict   Wait") && said.contains("identity  none"),
        "{said}"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let output = Command::new(env!("CARGO_BIN_EXE_althing-node"))
        .args(["inspect", "--data-dir", "/nonexistent/volume"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("is the volume mounted"),
        "{said}"
    );
}
