//! A hub on this machine that answers as the real one does, or fails in the ways a real one can.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The one commit.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A file of the repository `org/name`.
#[derive(Clone)]
pub struct HubFile {
    pub path: String,
    pub content: Vec<u8>,
    /// Kept outside git, as weights are.
    pub large: bool,
    /// Size in the listing, where it is not that of the content.
    pub listed_size: Option<u64>,
}

impl HubFile {
    pub fn small(path: &str, content: impl Into<Vec<u8>>) -> Self {
        Self { path: path.to_owned(), content: content.into(), large: false, listed_size: None }
    }

    pub fn large(path: &str, content: impl Into<Vec<u8>>) -> Self {
        Self { large: true, ..Self::small(path, content) }
    }

    /// The name of its content in the cache.
    pub fn digits(&self) -> String {
        if self.large {
            format!("{:x}", Sha256::digest(&self.content))
        } else {
            let header = format!("blob {}\0", self.content.len());
            format!("{:x}", Sha1::digest([header.as_bytes(), &self.content].concat()))
        }
    }

    fn listed(&self) -> String {
        let (path, size) = (&self.path, self.listed_size.unwrap_or(self.content.len() as u64));
        if self.large {
            let (pointer, sum) = ("1".repeat(40), self.digits());
            format!(
                r#"{{"rfilename":"{path}","blobId":"{pointer}","size":{size},"lfs":{{"sha256":"{sum}","size":{size},"pointerSize":134}}}}"#
            )
        } else {
            format!(r#"{{"rfilename":"{path}","blobId":"{}","size":{size}}}"#, self.digits())
        }
    }
}

/// How the hub behaves.
#[derive(Default)]
pub struct Behaviour {
    pub files: Vec<HubFile>,
    /// Where large files are redirected to; served here if empty.
    pub storage: String,
    /// The answer to everything: status and error code.
    pub refusal: Option<(u16, &'static str)>,
    /// The next large file is cut after so many bytes, once.
    pub cut_after: Option<usize>,
    /// Large files end after so many bytes, but the connection stays.
    pub stall_after: Option<usize>,
    /// Sends whole files whatever part is asked for.
    pub ignores_ranges: bool,
    /// Sends large files with one bit changed.
    pub alters: bool,
}

/// A request and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub path: String,
    /// First byte of a range.
    pub from: Option<usize>,
    pub authorization: Option<String>,
    /// Bytes of content sent.
    pub sent: usize,
}

/// A running hub; it ends with the test.
pub struct LoopbackHub {
    pub address: String,
    behaviour: Arc<Mutex<Behaviour>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl LoopbackHub {
    /// `host` is another name of this machine where a test needs two hosts.
    pub fn start(host: &str, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{host}:{}", listener.local_addr().unwrap().port());
        let hub = Self { address, behaviour: Arc::new(Mutex::new(behaviour)), asked: Arc::new(Mutex::new(Vec::new())) };
        let (behaviour, asked) = (Arc::clone(&hub.behaviour), Arc::clone(&hub.asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (behaviour, asked) = (Arc::clone(&behaviour), Arc::clone(&asked));
                // A client that goes away in the middle is what some tests are about.
                std::thread::spawn(move || drop(serve(stream, &behaviour, &asked)));
            }
        });
        hub
    }

    pub fn with(files: Vec<HubFile>) -> Self {
        Self::start("127.0.0.1", Behaviour { files, ..Behaviour::default() })
    }

    pub fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap()
    }

    /// The requests since the last call.
    pub fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn serve(mut stream: TcpStream, behaviour: &Mutex<Behaviour>, log: &Mutex<Vec<Asked>>) -> std::io::Result<()> {
    let mut asked = Asked { path: String::new(), from: None, authorization: None, sent: 0 };
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    asked.path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    for line in lines {
        let line = line?;
        match line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value)) {
            Some((name, value)) if name == "range" => {
                asked.from = value.trim_start_matches("bytes=").trim_end_matches('-').parse().ok();
            }
            Some((name, value)) if name == "authorization" => asked.authorization = Some(value.to_owned()),
            None if line.is_empty() => break,
            _ => (),
        }
    }
    let answer = Answer::to(&asked, &mut behaviour.lock().unwrap());
    asked.sent = answer.body.len().min(answer.sent);
    log.lock().unwrap().push(asked);
    stream.write_all(answer.head.as_bytes())?;
    stream.write_all(&answer.body[..answer.body.len().min(answer.sent)])?;
    stream.flush()?;
    if answer.stalls {
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
    Ok(())
}

struct Answer {
    head: String,
    body: Vec<u8>,
    /// Bytes of the body that are sent.
    sent: usize,
    stalls: bool,
}

impl Answer {
    fn new(status: u16, headers: &str, body: Vec<u8>) -> Self {
        let head =
            format!("HTTP/1.1 {status} -\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len());
        Self { head, body, sent: usize::MAX, stalls: false }
    }

    fn to(asked: &Asked, behaviour: &mut Behaviour) -> Self {
        if let Some((status, code)) = behaviour.refusal {
            let code = if code.is_empty() { String::new() } else { format!("X-Error-Code: {code}\r\n") };
            return Self::new(status, &format!("{code}X-Error-Message: as the test wants\r\n"), Vec::new());
        }
        if asked.path == "/api/models/org/name/revision/main?blobs=true" {
            let files: Vec<String> = behaviour.files.iter().map(HubFile::listed).collect();
            let json = format!(r#"{{"id":"org/name","sha":"{COMMIT}","siblings":[{}]}}"#, files.join(","));
            return Self::new(200, "", json.into_bytes());
        }
        let resolved = format!("/org/name/resolve/{COMMIT}/");
        let (place, name) = ["/stored/", "/kept/", &resolved]
            .into_iter()
            .find_map(|place| asked.path.strip_prefix(place).map(|name| (place, name)))
            .unwrap_or(("", ""));
        let Some(file) = behaviour.files.iter().find(|file| file.path == name).cloned() else {
            return Self::new(404, "X-Error-Code: EntryNotFound\r\n", Vec::new());
        };
        if place == resolved && !behaviour.storage.is_empty() {
            // Large files are elsewhere, small ones at another place here, as at the real hub.
            return match file.large {
                true => Self::new(302, &format!("Location: {}/stored/{name}\r\n", behaviour.storage), Vec::new()),
                false => Self::new(307, &format!("Location: /kept/{name}\r\n"), Vec::new()),
            };
        }
        Self::content(asked, &file, behaviour)
    }

    fn content(asked: &Asked, file: &HubFile, behaviour: &mut Behaviour) -> Self {
        let mut content = file.content.clone();
        if behaviour.alters && file.large {
            content[0] ^= 1;
        }
        let total = content.len();
        let mut answer = match asked.from.filter(|_| !behaviour.ignores_ranges) {
            Some(from) if from >= total => Self::new(416, &format!("Content-Range: bytes */{total}\r\n"), Vec::new()),
            Some(from) => {
                let range = format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1);
                Self::new(206, &range, content.split_off(from))
            }
            None => Self::new(200, "", content),
        };
        if file.large {
            answer.sent = behaviour.cut_after.take().or(behaviour.stall_after).unwrap_or(usize::MAX);
            answer.stalls = behaviour.stall_after.is_some();
        }
        answer
    }
}
