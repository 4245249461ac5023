//! Requests to the hub.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use ureq::config::RedirectAuthHeaders;
use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::error::HubError;
use crate::listing::Listing;
use crate::name::Repository;
use crate::settings::Settings;

/// Most bytes of a listing that are read; the largest real ones have some megabytes.
const LONGEST_LISTING: u64 = 1 << 25;
/// Most characters of a server's message that are passed on.
const LONGEST_MESSAGE: usize = 300;
/// A server that is silent for so long has gone.
const SILENCE: Duration = Duration::from_secs(60);
/// Characters with a meaning in addresses, all but the slash.
const SPECIAL: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'&')
    .add(b'+')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// A repository at the hub.
pub(crate) struct Client<'a> {
    agent: Agent,
    settings: &'a Settings,
    repository: &'a Repository,
    revision: &'a str,
}

impl<'a> Client<'a> {
    /// Asks nothing yet.
    pub(crate) fn new(settings: &'a Settings, repository: &'a Repository, revision: &'a str) -> Result<Self, HubError> {
        let secure = settings.endpoint.starts_with("https://");
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(authorities(secure)?)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .https_only(secure)
            .http_status_as_error(false)
            // Large files come from other hosts, which the token is none of the business of.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(SILENCE / 2))
            .timeout_per_read(Some(SILENCE))
            .user_agent(concat!("mambo/", env!("CARGO_PKG_VERSION")))
            // Sizes and checksums are those of the plain content.
            .accept_encoding("identity")
            .build()
            .new_agent();
        Ok(Self { agent, settings, repository, revision })
    }

    /// What the repository holds at the revision.
    pub(crate) fn listing(&self) -> Result<Listing, HubError> {
        let Self { settings, repository, .. } = self;
        let revision = utf8_percent_encode(self.revision, SPECIAL).to_string().replace('/', "%2F");
        let address = format!("{}/api/models/{repository}/revision/{revision}?blobs=true", settings.endpoint);
        let mut attempt = 0;
        let json = loop {
            match self.whole(&address) {
                Err(error) if error.may_pass() && self.pause(attempt) => attempt += 1,
                other => break other?,
            }
        };
        Listing::parse(&json, repository, &address)
    }

    /// The content of a file at a commit from byte `from` on; the status is 200 (all of it), or 206 (from there on).
    pub(crate) fn content(&self, commit: &str, path: &str, from: u64) -> Result<(String, Response<Body>), HubError> {
        let path = utf8_percent_encode(path, SPECIAL);
        let address = format!("{}/{}/resolve/{commit}/{path}", self.settings.endpoint, self.repository);
        let response = self.get(&address, from)?;
        Ok((address, response))
    }

    /// Waits before the next attempt; false if there should be none.
    pub(crate) fn pause(&self, attempt: u32) -> bool {
        let again = attempt + 1 < self.settings.attempts;
        if again {
            std::thread::sleep(self.settings.pause * (1 << attempt.min(5)));
        }
        again
    }

    fn whole(&self, address: &str) -> Result<Vec<u8>, HubError> {
        let mut json = Vec::new();
        let mut body = self.get(address, 0)?.into_body().into_reader().take(LONGEST_LISTING);
        body.read_to_end(&mut json).map_err(|error| network(address, ureq::Error::from(error)))?;
        Ok(json)
    }

    fn get(&self, address: &str, from: u64) -> Result<Response<Body>, HubError> {
        let mut request = self.agent.get(address);
        if let Some(token) = &self.settings.token {
            request = request.header("Authorization", format!("Bearer {}", token.0));
        }
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        let response = request.call().map_err(|error| network(address, error))?;
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(address, &response)) }
    }

    /// What an answer other than the wanted one means.
    fn refusal(&self, address: &str, response: &Response<Body>) -> HubError {
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let detail: String = header("x-error-message").map(|text| format!(", {text}")).unwrap_or_default();
        let detail = detail.chars().take(LONGEST_MESSAGE).collect();
        let (repository, endpoint) = (self.repository.to_string(), self.settings.endpoint.clone());
        let unknown = |repository, endpoint| HubError::NoSuchRepository { repository, endpoint };
        match (response.status().as_u16(), header("x-error-code")) {
            (_, Some("RevisionNotFound")) => {
                HubError::NoSuchRevision { repository, revision: self.revision.to_owned() }
            }
            (_, Some("RepoNotFound")) => unknown(repository, endpoint),
            (status, Some("GatedRepo")) => HubError::Refused { repository, endpoint, status, detail },
            // Without a token, hidden and unknown repositories look the same.
            (401, _) if self.settings.token.is_none() => unknown(repository, endpoint),
            (status @ (401 | 403), _) => HubError::Refused { repository, endpoint, status, detail },
            (404, None) => unknown(repository, endpoint),
            (status, _) => HubError::Status { address: address.to_owned(), status, detail },
        }
    }
}

/// The authorities that this system trusts, as browsers and curl do, so that a company's own counts too.
fn authorities(needed: bool) -> Result<Vec<Certificate<'static>>, HubError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!("certificates of this system: {error}");
    }
    if needed && found.certs.is_empty() {
        return Err(HubError::NoAuthorities);
    }
    Ok(found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect())
}

/// An error on the way.
pub(crate) fn network(address: &str, source: ureq::Error) -> HubError {
    HubError::Network { address: address.to_owned(), source: Box::new(source) }
}
