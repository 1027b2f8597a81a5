//! The bed's certificates: one authority and one pair of files per identity, valid wherever the run's folder is and
//! worthless elsewhere. Made anew for every bed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use super::layout::{API_SERVICE, API_URL, CONTROL, Node};
use crate::error::{Error, Result};

/// The folder of certificates, keys and kubeconfigs.
#[derive(Debug, Clone)]
pub(super) struct Pki {
    folder: PathBuf,
}

/// Who a certificate speaks for: Kubernetes reads the user from CN and the groups from O.
struct Identity {
    file: String,
    user: String,
    group: Option<&'static str>,
    names: Vec<String>,
}

impl Pki {
    /// Makes all identities of a bed in `folder`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub(super) fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let pki = Self {
            folder: folder.to_owned(),
        };
        let authority = authority()?;
        pki.write("ca.crt", &authority.pem())?;
        pki.write("ca.key", &authority.key().serialize_pem())?;
        for identity in identities() {
            pki.issue(&authority, &identity)?;
        }
        let service_accounts = KeyPair::generate().map_err(certificate_error("service accounts"))?;
        pki.write("sa.key", &service_accounts.serialize_pem())?;
        pki.write("sa.pub", &service_accounts.public_key_pem())?;
        Ok(pki)
    }

    /// The path of a file in the folder.
    pub(super) fn path(&self, file: &str) -> String {
        self.folder.join(file).to_string_lossy().into_owned()
    }

    fn issue(&self, authority: &CertifiedIssuer<'_, KeyPair>, identity: &Identity) -> Result<()> {
        let failed = || certificate_error(&identity.user);
        let mut params = CertificateParams::new(identity.names.clone()).map_err(failed())?;
        params
            .distinguished_name
            .push(DnType::CommonName, identity.user.as_str());
        if let Some(group) = identity.group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(failed())?;
        let certificate = params.signed_by(&key, authority).map_err(failed())?;
        let file = &identity.file;
        self.write(&format!("{file}.crt"), &certificate.pem())?;
        self.write(&format!("{file}.key"), &key.serialize_pem())?;
        // JSON is YAML, so this is a kubeconfig.
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "bed", "cluster": {"server": API_URL, "certificate-authority": self.path("ca.crt")}}],
            "users": [{"name": file, "user": {
                "client-certificate": self.path(&format!("{file}.crt")),
                "client-key": self.path(&format!("{file}.key")),
            }}],
            "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": file}}],
            "current-context": "bed",
        });
        self.write(&format!("{file}.conf"), &format!("{kubeconfig:#}\n"))
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.folder.join(file);
        fs::write(&path, text).map_err(Error::io("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(Error::io("protect", &path))
    }
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>> {
    let failed = || certificate_error("the bed's authority");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "althing bed");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().map_err(failed())?).map_err(failed())
}

fn identities() -> Vec<Identity> {
    let client = |file: &str, user: &str, group| Identity {
        file: file.to_owned(),
        user: user.to_owned(),
        group,
        names: Vec::new(),
    };
    let api_names = [
        "localhost",
        "127.0.0.1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
    ];
    let api_addresses = [CONTROL.to_string(), API_SERVICE.to_string()];
    let mut identities = vec![
        Identity {
            names: api_names.into_iter().map(str::to_owned).chain(api_addresses).collect(),
            ..client("apiserver", "kube-apiserver", None)
        },
        client("admin", "admin", Some("system:masters")),
        client(
            "kubelet-client",
            "kube-apiserver-kubelet-client",
            Some("system:masters"),
        ),
        client("controller-manager", "system:kube-controller-manager", None),
        client("scheduler", "system:kube-scheduler", None),
        client("proxy", "system:kube-proxy", None),
    ];
    identities.extend(Node::ALL.map(|node| Identity {
        names: vec![node.to_string(), node.address().to_string()],
        ..client(
            &format!("kubelet-{node}"),
            &format!("system:node:{node}"),
            Some("system:nodes"),
        )
    }));
    identities
}

fn certificate_error(subject: &str) -> impl FnOnce(rcgen::Error) -> Error {
    let subject = subject.to_owned();
    move |source| Error::Certificate { subject, source }
}
