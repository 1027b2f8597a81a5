//! A volume that fills up: a real file system of a few megabytes, and a real process on it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

mod support;

use althing_api::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use althing_api::pb::etcdserverpb::{AlarmRequest, AlarmType, DefragmentRequest, StatusRequest};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use support::{Node, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
const MIB: u64 = 1 << 20;

/// A file system in memory; `None` without the right to mount one.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(mib: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={mib}m")).unwrap();
        match mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(&*options)) {
            Ok(()) => Some(Self(dir)),
            Err(error) => {
                eprintln!("skipped: a small file system cannot be mounted ({error}); run as root");
                None
            }
        }
    }

    fn filler(&self) -> PathBuf {
        self.0.path().join("filler")
    }

    /// Leaves so many bytes free.
    fn leave(&self, bytes: u64) {
        let stat = rustix::fs::statvfs(self.0.path()).unwrap();
        let free = stat.f_bavail * stat.f_frsize;
        let present = std::fs::metadata(self.filler()).map_or(0, |data| data.len());
        let wanted = (present + free).saturating_sub(bytes);
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.filler())
            .unwrap();
        if wanted < present {
            file.set_len(wanted).unwrap();
        } else {
            fill(&file, wanted - present);
        }
    }

    fn clear(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

/// Zeros that take room; the end of it is no error here.
fn fill(mut file: &std::fs::File, mut bytes: u64) {
    let zeros = vec![0; 64 << 10];
    while bytes > 0 {
        let len = bytes.min(zeros.len() as u64);
        if std::io::Write::write_all(&mut file, &zeros[..len as usize]).is_err() {
            return;
        }
        bytes -= len;
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

fn node_on(volume: &Path, reserve: u64) -> Node {
    let reserve = reserve.to_string();
    let flags = ["--wal-segment-bytes", "4194304", "--volume-reserve-bytes", &reserve];
    let mut node = Node::prepare("a-0", tempfile::tempdir().unwrap(), &flags);
    node.with_data_dir(volume.join("data"));
    node
}

async fn health(node: &Node) -> String {
    let mut socket = tokio::net::TcpStream::connect(node.client_address()).await.unwrap();
    let request = b"GET /health HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
    socket.write_all(request).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn alarms(node: &Node) -> Vec<i32> {
    let mut client = MaintenanceClient::connect(format!("http://{}", node.client_address()))
        .await
        .unwrap();
    let answer = client.alarm(AlarmRequest::default()).await.unwrap().into_inner();
    answer.alarms.into_iter().map(|alarm| alarm.alarm).collect()
}

/// Puts keys until one is refused, which takes until the volume is measured again, and gives that key.
async fn refused(node: &Node, prefix: &str) -> String {
    let tried = AtomicU32::new(0);
    let next = || format!("{prefix}/{}", tried.load(Ordering::Relaxed));
    eventually("puts are refused", || async {
        match node.put(&next(), "x").await {
            Ok(_) => {
                tried.fetch_add(1, Ordering::Relaxed);
                Err("a put was taken".to_owned())
            }
            Err(status) if status.code() == Code::ResourceExhausted => {
                assert_eq!(status.message(), NO_SPACE);
                Ok(())
            }
            Err(status) => Err(status.to_string()),
        }
    })
    .await;
    next()
}

async fn taken(node: &Node, key: &str) {
    eventually("puts are taken again", || async {
        node.put(key, "v").await.map(drop).map_err(|status| status.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_volume_makes_a_member_read_only_until_there_is_room_again() {
    let Some(volume) = Small::mount(96) else { return };
    let mut node = node_on(volume.0.path(), 24 * MIB);
    node.run();
    node.bootstrap().await;
    for number in 0..20 {
        node.put(&format!("k{number}"), "v").await.unwrap();
    }
    assert!(alarms(&node).await.is_empty());

    // Below the reserve: no growth, but deletions, which are how room is made.
    volume.leave(18 * MIB);
    refused(&node, "below").await;
    assert_eq!(node.get("k1").await.unwrap().as_deref(), Some("v"));
    assert_eq!(node.delete("k0").await.unwrap(), 1);
    assert_eq!(alarms(&node).await, [i32::from(AlarmType::Nospace)]);
    let said = health(&node).await;
    assert!(
        said.starts_with("HTTP/1.1 503") && said.contains("ALARM NOSPACE"),
        "{said}"
    );

    // Not a byte left: nothing is written at all, and everything is read.
    volume.leave(0);
    refused(&node, "none").await;
    let error = node.delete("k1").await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::ResourceExhausted, NO_SPACE));
    for number in 1..20 {
        assert_eq!(node.get(&format!("k{number}")).await.unwrap().as_deref(), Some("v"));
    }
    assert!(!node.has_ended());

    // A restart on the full volume is no crash loop.
    node.kill();
    node.run();
    node.ready().await;
    assert_eq!(node.get("k19").await.unwrap().as_deref(), Some("v"));
    let last = refused(&node, "restarted").await;
    assert!(!node.has_ended());

    volume.clear();
    taken(&node, "k20").await;
    assert!(alarms(&node).await.is_empty());
    assert!(health(&node).await.starts_with("HTTP/1.1 200"));
    assert_eq!(node.get(&last).await.unwrap(), None, "what was refused was not done");
    assert!(node.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_room_for_its_next_segment_waits_and_loses_nothing() {
    let Some(volume) = Small::mount(64) else { return };
    // No reserve: the log itself runs into the end of the volume.
    let mut node = node_on(volume.0.path(), 0);
    node.run();
    node.bootstrap().await;
    volume.leave(MIB * 20);
    let value = "x".repeat(100_000);
    let mut acknowledged = Vec::new();
    for number in 0..200 {
        // 200 puts of 100 KB do not fit.
        match node.put(&format!("k{number}"), &value).await {
            Ok(_) => acknowledged.push(number),
            Err(status) => {
                assert!(
                    matches!(
                        status.code(),
                        Code::ResourceExhausted | Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
                    ),
                    "{status}"
                );
                break;
            }
        }
    }
    assert!(acknowledged.len() < 200);
    refused(&node, "log").await;
    assert!(!node.has_ended(), "a full volume is no reason to end");
    volume.clear();
    taken(&node, "after").await;
    for number in &acknowledged {
        assert_eq!(
            node.get(&format!("k{number}")).await.unwrap().as_deref(),
            Some(value.as_str())
        );
    }
    node.kill();
    node.run();
    node.ready().await;
    for number in &acknowledged {
        assert_eq!(
            node.get(&format!("k{number}")).await.unwrap().as_deref(),
            Some(value.as_str())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn defragmenting_gives_space_back_while_a_member_serves() {
    let mut node = Node::start_with("a-0", &["--volume-reserve-bytes", "0"]);
    node.bootstrap().await;
    let value = "x".repeat(50_000);
    let mut revision = 0;
    for round in 0..600 {
        revision = node.put(&format!("k{}", round % 3), &value).await.unwrap();
    }
    let mut kv = node.kv().await;
    let compact = althing_api::pb::etcdserverpb::CompactionRequest {
        revision,
        physical: true,
    };
    kv.compact(compact).await.unwrap();
    let mut client = MaintenanceClient::connect(format!("http://{}", node.client_address()))
        .await
        .unwrap();
    let on_disk = |client: MaintenanceClient<tonic::transport::Channel>| async move {
        let mut client = client;
        client.status(StatusRequest {}).await.unwrap().into_inner().db_size
    };
    // Sweeping goes on in the background.
    eventually("old revisions are swept", || async {
        let mut client = client.clone();
        let status = client.status(StatusRequest {}).await.unwrap().into_inner();
        if status.db_size_in_use < 300_000 {
            Ok(())
        } else {
            Err(status.db_size_in_use.to_string())
        }
    })
    .await;
    let before = on_disk(client.clone()).await;
    client.defragment(DefragmentRequest {}).await.unwrap();
    let after = on_disk(client.clone()).await;
    assert!(after * 3 < before, "{before} bytes before and {after} after");
    node.put("later", "v").await.unwrap();
    node.kill();
    node.run();
    node.ready().await;
    assert_eq!(node.get("later").await.unwrap().as_deref(), Some("v"));
    for key in ["k0", "k1", "k2"] {
        assert_eq!(node.get(key).await.unwrap().as_deref(), Some(value.as_str()));
    }
}
