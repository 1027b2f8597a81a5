//! Which clusters a command means: a folder's on this machine, or a Kubernetes'. Pure; the facts are gathered by `run`.

use std::path::PathBuf;

use crate::args::Place;
use crate::error::Error;

/// Where a command goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// The supervisor of this folder.
    Local(PathBuf),
    /// The API server of this context, or of the current one.
    Kube {
        /// The context, if one was named.
        context: Option<String>,
    },
}

/// What was found on the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Facts {
    /// Called as `kubectl-althing`, that is as `kubectl althing`.
    pub(crate) kubectl_plugin: bool,
    /// The folder that `--dir` or the default names.
    pub(crate) dir: PathBuf,
    /// Whether a supervisor holds that folder.
    pub(crate) supervisor: bool,
    /// Whether a kubeconfig or a service account is there.
    pub(crate) kubeconfig: bool,
}

/// Flags win; then the name it was called by; then what is there, this machine first.
pub(crate) fn choose(place: &Place, facts: &Facts) -> Result<Target, Error> {
    let kube = || Target::Kube {
        context: place.context.clone(),
    };
    let local = || Target::Local(facts.dir.clone());
    if place.kube || place.context.is_some() {
        return Ok(kube());
    }
    if place.local || place.dir.is_some() {
        return Ok(local());
    }
    match (facts.kubectl_plugin, facts.supervisor, facts.kubeconfig) {
        (true, _, _) => Ok(kube()),
        (false, true, _) => Ok(local()),
        (false, false, true) => Ok(kube()),
        (false, false, false) => Err(Error::NoTarget { dir: facts.dir.clone() }),
    }
}

/// The folder when `--dir` does not name one: `./.althing` if it exists, so that a project can have its own;
/// else the user's state folder (XDG Base Directory Specification 0.8).
pub(crate) fn default_dir(here_exists: bool, xdg_state_home: Option<PathBuf>, home: Option<PathBuf>) -> PathBuf {
    if here_exists {
        return PathBuf::from(HERE);
    }
    // The specification says that a relative value is invalid and is to be ignored.
    let xdg = xdg_state_home.filter(|path| path.is_absolute());
    xdg.or_else(|| home.map(|home| home.join(".local/state")))
        .map_or_else(|| PathBuf::from(HERE), |state| state.join("althing"))
}

/// A project's own folder.
pub(crate) const HERE: &str = ".althing";

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(kubectl_plugin: bool, supervisor: bool, kubeconfig: bool) -> Facts {
        Facts {
            kubectl_plugin,
            dir: PathBuf::from("/state"),
            supervisor,
            kubeconfig,
        }
    }

    fn kube(context: Option<&str>) -> Target {
        Target::Kube {
            context: context.map(str::to_owned),
        }
    }

    #[test]
    fn flags_win_over_what_is_there() {
        let everything = facts(false, true, true);
        let flag = |place: Place| choose(&place, &everything).unwrap();
        assert_eq!(
            flag(Place {
                kube: true,
                ..Place::default()
            }),
            kube(None)
        );
        assert_eq!(
            flag(Place {
                context: Some("prod".into()),
                ..Place::default()
            }),
            kube(Some("prod"))
        );
        assert_eq!(
            flag(Place {
                local: true,
                ..Place::default()
            }),
            Target::Local("/state".into())
        );
        let plugin = facts(true, false, true);
        let dir = Place {
            dir: Some("/state".into()),
            ..Place::default()
        };
        assert_eq!(choose(&dir, &plugin).unwrap(), Target::Local("/state".into()));
    }

    #[test]
    fn without_flags_the_plugin_goes_to_kubernetes_and_the_program_to_a_running_supervisor_first() {
        let bare = |facts| choose(&Place::default(), &facts).ok();
        assert_eq!(bare(facts(true, true, true)), Some(kube(None)));
        assert_eq!(bare(facts(false, true, true)), Some(Target::Local("/state".into())));
        assert_eq!(bare(facts(false, false, true)), Some(kube(None)));
        assert_eq!(bare(facts(false, false, false)), None);
    }

    #[test]
    fn the_default_folder_is_the_projects_own_then_the_users_state_folder() {
        let dir = |here, xdg: Option<&str>, home: Option<&str>| {
            default_dir(here, xdg.map(PathBuf::from), home.map(PathBuf::from))
                .display()
                .to_string()
        };
        assert_eq!(dir(true, Some("/x"), Some("/home/a")), ".althing");
        assert_eq!(dir(false, Some("/x"), Some("/home/a")), "/x/althing");
        assert_eq!(
            dir(false, Some("relative"), Some("/home/a")),
            "/home/a/.local/state/althing"
        );
        assert_eq!(dir(false, None, None), ".althing");
    }
}
