//! What the environment says, in the variables of the hub's Python tools.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::HubError;

/// The hub itself.
const ENDPOINT: &str = "https://huggingface.co";

/// Where the hub and the cache are, and how patient to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Address of the hub or of a mirror, without a slash at the end.
    pub endpoint: String,
    /// Folder of the cache.
    pub cache: PathBuf,
    /// Sent to the endpoint, never elsewhere.
    pub token: Option<Token>,
    /// Nothing is asked of the network.
    pub offline: bool,
    /// How often a request is tried without a byte coming.
    pub attempts: u32,
    /// Time before the second try; doubled before each further one.
    pub pause: Duration,
}

/// A secret; not shown when printed for debugging.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(...)")
    }
}

impl Settings {
    /// From the environment of this process: HF_ENDPOINT, HF_HUB_OFFLINE, for the cache HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE,
    /// HF_HOME, XDG_CACHE_HOME, home, and for the token HF_TOKEN or a file, HF_TOKEN_PATH or `token` in HF_HOME.
    ///
    /// # Errors
    /// HF_ENDPOINT is no web address, or there is no home to put the cache in.
    pub fn from_environment() -> Result<Self, HubError> {
        Self::from(|name| std::env::var_os(name))
    }

    fn from(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().trim().to_owned());
        let home = || set("HOME").or_else(|| set("USERPROFILE")).map(PathBuf::from);
        let folder = |name: &str| {
            let path = PathBuf::from(set(name)?);
            match path.strip_prefix("~") {
                Ok(rest) => home().map(|home| home.join(rest)),
                Err(_) => Some(path),
            }
        };
        let caches = || folder("XDG_CACHE_HOME").or_else(|| Some(home()?.join(".cache")));
        let root = folder("HF_HOME").or_else(|| Some(caches()?.join("huggingface")));
        let below = |name: &str| root.as_ref().map(|root| root.join(name));
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE")).or_else(|| below("hub"));
        // What `hf auth login` left; without one, all that is public is still there.
        let kept = || {
            let text = std::fs::read_to_string(folder("HF_TOKEN_PATH").or_else(|| below("token"))?).ok()?;
            Some(text.trim().to_owned())
        };
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(HubError::Endpoint { endpoint });
        }
        let yes = |name: &str| {
            text(name).is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
        };
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: cache.ok_or(HubError::NoHome)?,
            token: text("HF_TOKEN").or_else(kept).filter(|token| !token.is_empty()).map(Token),
            offline: yes("HF_HUB_OFFLINE"),
            attempts: 5,
            pause: Duration::from_secs(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings, HubError> {
        Settings::from(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_cache_is_where_the_python_tools_have_it() {
        let places: [(&[(&str, &str)], &str); 7] = [
            (&[("HOME", "/h")], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HF_HOME", "/hf"), ("XDG_CACHE_HOME", "/x")], "/hf/hub"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/hf")], "/old"),
            (&[("HF_HUB_CACHE", "/new"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/new"),
            (&[("HF_HUB_CACHE", ""), ("HF_HOME", "/hf")], "/hf/hub"),
            (&[("HF_HOME", "~/hf"), ("HOME", "/h")], "/h/hf/hub"),
        ];
        for (variables, place) in places {
            assert_eq!(settings(variables).unwrap().cache, Path::new(place), "{variables:?}");
        }
        assert!(matches!(settings(&[]), Err(HubError::NoHome)));
    }

    #[test]
    fn the_token_is_the_one_of_the_last_login_unless_one_is_given() {
        let folder = tempfile::tempdir().unwrap();
        let (home, kept) = (folder.path().to_str().unwrap(), folder.path().join("token"));
        assert_eq!(settings(&[("HF_HOME", home)]).unwrap().token, None);
        std::fs::write(&kept, "kept\n").unwrap();
        let token = |variables: &[(&str, &str)]| settings(variables).unwrap().token.map(|token| token.0);
        assert_eq!(token(&[("HF_HOME", home)]).as_deref(), Some("kept"));
        assert_eq!(token(&[("HF_HOME", home), ("HF_TOKEN", "given")]).as_deref(), Some("given"));
        assert_eq!(token(&[("HOME", "/h"), ("HF_TOKEN_PATH", kept.to_str().unwrap())]).as_deref(), Some("kept"));
    }

    #[test]
    fn the_rest_is_read_as_written() {
        let plain = settings(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "0"), ("HF_TOKEN", " ")]).unwrap();
        assert_eq!((plain.endpoint.as_str(), plain.offline, plain.token), (ENDPOINT, false, None));
        let other =
            [("HOME", "/h"), ("HF_ENDPOINT", "http://127.0.0.1:9/"), ("HF_HUB_OFFLINE", "true"), ("HF_TOKEN", "s3\n")];
        let other = settings(&other).unwrap();
        assert_eq!((other.endpoint.as_str(), other.offline), ("http://127.0.0.1:9", true));
        assert!(!format!("{other:?}").contains("s3") && other.token == Some(Token("s3".into())));
        assert!(settings(&[("HOME", "/h"), ("HF_ENDPOINT", "ftp://x")]).is_err());
    }
}
