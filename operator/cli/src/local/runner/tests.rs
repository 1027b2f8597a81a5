//! The runner with real processes: shells that sleep, fail or do not want to end.

use super::*;

/// `sh -c <script>` for every member.
struct Script {
    script: &'static str,
    hash: &'static str,
}

impl Commands for Script {
    fn program(&self) -> &Path {
        Path::new("sh")
    }

    fn args(&self, _: Ordinal) -> Result<Vec<String>, Error> {
        Ok(vec!["-c".to_owned(), self.script.to_owned()])
    }

    fn workload_hash(&self) -> String {
        self.hash.to_owned()
    }
}

const SLEEPS: Script = Script {
    script: "exec sleep 60",
    hash: "one",
};
const STUBBORN: Script = Script {
    script: "trap '' TERM; echo ready; while :; do sleep 1; done",
    hash: "one",
};
const FAILS: Script = Script {
    script: "echo port 2379 is taken; exit 3",
    hash: "one",
};
const ZERO: Ordinal = Ordinal(0);

struct Bed {
    _dir: tempfile::TempDir,
    layout: Layout,
    cluster: ClusterKey,
    now: Instant,
}

impl Bed {
    fn new() -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        Bed {
            layout,
            cluster: ClusterKey::new("default", "orders"),
            now: Instant::now(),
            _dir: dir,
        }
    }

    fn open(&self) -> (Runner, Vec<Happening>) {
        Runner::open(&self.layout, &self.cluster, self.now).unwrap()
    }

    fn key(&self) -> MemberKey {
        MemberKey {
            cluster: self.cluster.clone(),
            ordinal: ZERO,
        }
    }

    fn started(&self, commands: &Script) -> Runner {
        let (mut runner, _) = self.open();
        runner.make_volume(ZERO).unwrap();
        runner.start(ZERO, commands, self.now).unwrap();
        runner.tick(commands, self.now).unwrap();
        assert_eq!(runner.workload(ZERO).0, Workload::Running);
        runner
    }

    /// Ticks at a time of its own until `until` holds: what is waited for is the operating system, not a clock.
    async fn tick_until(
        &mut self,
        runner: &mut Runner,
        commands: &Script,
        until: impl Fn(&Runner) -> bool,
    ) -> Vec<String> {
        let mut said = Vec::new();
        for _ in 0..2_000 {
            said.extend(runner.tick(commands, self.now).unwrap().into_iter().map(|it| it.what));
            if until(runner) {
                return said;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it did not come to pass; so far: {said:?}");
    }
}

fn pid(runner: &Runner) -> u32 {
    match &runner.members[&ZERO].state {
        State::Running { process, .. } | State::Stopping { process, .. } => process.pid(),
        State::Waiting { .. } => panic!("it does not run"),
    }
}

fn runs(runner: &Runner) -> bool {
    runner.workload(ZERO).0 == Workload::Running
}

#[tokio::test]
async fn a_process_that_ends_is_started_again_after_its_wait_and_not_before() {
    let mut bed = Bed::new();
    let mut runner = bed.started(&FAILS);
    let said = bed.tick_until(&mut runner, &FAILS, |runner| !runs(runner)).await;
    assert_eq!(
        said,
        ["ended by itself: exit status: 3; it last said: port 2379 is taken; started again in 100 ms"]
    );
    let (workload, _) = runner.workload(ZERO);
    assert!(
        matches!(&workload, Workload::Failed { reason, .. } if reason == "Ended"),
        "{workload:?}"
    );
    assert_eq!(runner.tick(&FAILS, bed.now + Duration::from_millis(99)).unwrap(), []);
    bed.now += Duration::from_millis(100);
    runner.tick(&FAILS, bed.now).unwrap();
    assert!(runs(&runner));
    for _ in 0..2 {
        bed.tick_until(&mut runner, &FAILS, |runner| !runs(runner)).await;
        bed.now += Duration::from_secs(1);
        runner.tick(&FAILS, bed.now).unwrap();
    }
    bed.tick_until(&mut runner, &FAILS, |runner| !runs(runner)).await;
    let (workload, _) = runner.workload(ZERO);
    assert!(
        matches!(&workload, Workload::Failed { reason, .. } if reason == "CrashLoopBackOff"),
        "{workload:?}"
    );
}

#[tokio::test]
async fn a_supervisor_that_died_leaves_processes_that_the_next_one_takes_over() {
    let mut bed = Bed::new();
    let first = bed.started(&SLEEPS);
    let running = pid(&first);
    let (mut second, happenings) = bed.open();
    assert!(happenings[0].what.contains("taken over"), "{happenings:?}");
    assert_eq!(
        (pid(&second), second.workload(ZERO)),
        (running, (Workload::Running, Some("one".to_owned())))
    );

    second.members.get_mut(&ZERO).map(|member| match &member.state {
        State::Running { process, .. } => process.kill(),
        State::Waiting { .. } | State::Stopping { .. } => panic!("it runs"),
    });
    // The first supervisor is still the parent here, so it has to collect the process before it is gone.
    drop(first);
    bed.now += Duration::from_secs(1);
    bed.tick_until(&mut second, &SLEEPS, |runner| !runs(runner)).await;
    bed.now += Duration::from_secs(1);
    second.tick(&SLEEPS, bed.now).unwrap();
    assert_ne!(pid(&second), running);
    second.kill_all();
}

#[tokio::test]
async fn a_stopped_process_is_forgotten_and_a_paused_one_runs_again_with_the_next_supervisor() {
    let mut bed = Bed::new();
    let mut runner = bed.started(&SLEEPS);
    runner.pause_all(bed.now);
    assert_eq!(runner.workload(ZERO).0, Workload::Terminating);
    bed.tick_until(&mut runner, &SLEEPS, Runner::is_empty).await;
    let (mut next, happenings) = bed.open();
    assert_eq!(happenings, []);
    next.tick(&Script { hash: "two", ..SLEEPS }, bed.now).unwrap();
    assert_eq!(
        next.workload(ZERO),
        (Workload::Running, Some("two".to_owned())),
        "it runs with what is declared now"
    );

    next.stop(ZERO, bed.now).unwrap();
    bed.tick_until(&mut next, &SLEEPS, Runner::is_empty).await;
    assert_eq!(next.workload(ZERO), (Workload::Absent, None));
    let (last, _) = bed.open();
    assert!(last.is_empty());
}

#[tokio::test]
async fn a_process_that_does_not_stop_is_killed_when_its_grace_is_over() {
    let mut bed = Bed::new();
    let mut runner = bed.started(&STUBBORN);
    let log = bed.layout.log(&bed.key());
    bed.tick_until(&mut runner, &STUBBORN, |_| files::tail(&log, 1) == "ready")
        .await;
    runner.stop(ZERO, bed.now).unwrap();
    assert_eq!(
        runner
            .tick(&STUBBORN, bed.now + GRACE - Duration::from_millis(1))
            .unwrap(),
        []
    );
    bed.now += GRACE;
    let said = bed.tick_until(&mut runner, &STUBBORN, Runner::is_empty).await;
    assert_eq!(said, ["did not stop within 15 s and was killed", "stopped"]);
}

#[tokio::test]
async fn a_volume_that_is_gone_or_another_one_is_lost_and_no_process_is_started_on_it() {
    let mut bed = Bed::new();
    let mut runner = bed.started(&SLEEPS);
    assert_eq!(runner.volume_state(ZERO), Volume::Present);
    let volume = bed.layout.volume(&bed.key());
    let aside = volume.with_extension("aside");
    fs::rename(&volume, &aside).unwrap();
    assert!(matches!(runner.volume_state(ZERO), Volume::Lost { .. }));
    fs::create_dir(&volume).unwrap();
    assert!(
        matches!(runner.volume_state(ZERO), Volume::Lost { .. }),
        "an empty folder in its place is not the volume"
    );
    runner.kill_all();
    bed.tick_until(&mut runner, &SLEEPS, |runner| !runs(runner)).await;
    bed.now += Duration::from_secs(60);
    assert_eq!(runner.tick(&SLEEPS, bed.now).unwrap(), []);
    assert!(
        !runs(&runner),
        "an empty volume must not be started on as if it were the member's"
    );
    assert!(matches!(runner.volume_state(ZERO), Volume::Lost { .. }));
    runner.stop(ZERO, bed.now).unwrap();
    assert_eq!(
        runner.volume_state(ZERO),
        Volume::Present,
        "it is an empty volume for a new member"
    );
}

#[tokio::test]
async fn a_volume_is_deleted_only_when_its_process_is_gone_and_then_whole() {
    let mut bed = Bed::new();
    let mut runner = bed.started(&SLEEPS);
    let volume = bed.layout.volume(&bed.key());
    runner.stop(ZERO, bed.now).unwrap();
    runner.delete_volume(ZERO).unwrap();
    assert!(volume.is_dir(), "the process still has it open");
    assert_eq!(runner.volume_state(ZERO), Volume::Terminating);
    bed.tick_until(&mut runner, &SLEEPS, Runner::is_empty).await;
    assert!(!volume.exists());
    assert_eq!(runner.volume_state(ZERO), Volume::Absent);

    // The supervisor died in the middle of a deletion: the next one finishes it.
    runner.make_volume(ZERO).unwrap();
    fs::write(bed.layout.doomed(&bed.key()), b"").unwrap();
    let (mut next, _) = bed.open();
    assert_eq!(next.volume_state(ZERO), Volume::Terminating);
    next.tick(&SLEEPS, bed.now).unwrap();
    assert_eq!(next.volume_state(ZERO), Volume::Absent);
}
