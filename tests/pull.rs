//! `mambo pull` as a user meets it, against a hub on this machine.
#![allow(clippy::unwrap_used)]

mod loopback;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use loopback::{Asked, Behaviour, COMMIT, HubFile, LoopbackHub};

/// Larger than any buffer on the way.
const WEIGHTS: usize = 3_000_000;

fn weights() -> HubFile {
    HubFile::large("model.safetensors", (0..WEIGHTS).map(|n| (n * n / 7) as u8).collect::<Vec<u8>>())
}

/// What a published repository looks like.
fn files() -> Vec<HubFile> {
    vec![
        HubFile::small(".gitattributes", "*.bin filter=lfs"),
        HubFile::small("README.md", "# A model"),
        HubFile::small("config.json", "{}"),
        weights(),
        HubFile::large("pytorch_model.bin", "a pickle"),
        HubFile::small("text/tokenizer.json", "{\"version\": \"1.0\"}"),
        HubFile::large("spiece.model", "pieces"),
    ]
}

/// A machine with an empty cache and a working folder.
struct Machine {
    folder: tempfile::TempDir,
    endpoint: String,
}

impl Machine {
    fn new(hub: &LoopbackHub) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), endpoint: hub.address.clone() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mambo"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HF_") || name.starts_with("HUGGING")) {
            command.env_remove(name);
        }
        command.args(arguments).current_dir(self.folder.path()).env("NO_PROXY", "127.0.0.1,localhost");
        command.env("HF_ENDPOINT", &self.endpoint).env("HF_HOME", self.folder.path().join("hf"));
        command
    }

    fn mambo(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The folder that a pull prints.
    fn pull(&self, more: &[&str]) -> PathBuf {
        let output = self.mambo(&[&["pull", "org/name"], more].concat());
        assert!(output.status.success(), "{}", error(&output));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
    }

    /// What a pull that fails says.
    fn refused(&self, more: &[&str]) -> String {
        let output = self.mambo(&[&["pull", "org/name"], more].concat());
        assert_eq!(output.status.code(), Some(1), "{}", error(&output));
        assert!(output.stdout.is_empty());
        error(&output)
    }

    fn repository(&self) -> PathBuf {
        self.folder.path().join("hf/hub/models--org--name")
    }

    fn partial(&self) -> PathBuf {
        self.repository().join("blobs").join(format!("{}.incomplete", weights().digits()))
    }
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Paths of all files and links below a folder.
fn below(folder: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in next.read_dir().into_iter().flatten() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                paths.push(entry.path().strip_prefix(folder).unwrap().to_string_lossy().replace('\\', "/"));
            }
        }
    }
    paths.sort();
    paths
}

fn is_listing(asked: &Asked) -> bool {
    asked.path.starts_with("/api/")
}

#[test]
fn a_repository_comes_whole_once_and_in_the_layout_of_the_python_tools() {
    let hub = LoopbackHub::with(files());
    let machine = Machine::new(&hub);
    let folder = machine.pull(&[]);
    assert_eq!(folder, machine.repository().join("snapshots").join(COMMIT));
    let needed = ["README.md", "config.json", "model.safetensors", "text/tokenizer.json"];
    assert_eq!(below(&folder), needed);
    let mut blobs: Vec<String> = Vec::new();
    for file in files().iter().filter(|file| needed.contains(&file.path.as_str())) {
        assert_eq!(std::fs::read(folder.join(&file.path)).unwrap(), file.content, "{}", file.path);
        let up = if file.path.contains('/') { "../../../blobs" } else { "../../blobs" };
        if cfg!(unix) {
            let link = std::fs::read_link(folder.join(&file.path)).unwrap();
            assert_eq!(link, Path::new(up).join(file.digits()));
        }
        blobs.push(file.digits());
    }
    blobs.sort();
    assert_eq!(below(&machine.repository().join("blobs")), blobs);
    assert_eq!(std::fs::read_to_string(machine.repository().join("refs/main")).unwrap(), COMMIT);
    let mut entries: Vec<_> =
        machine.repository().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    entries.sort();
    assert_eq!(entries, ["blobs", "refs", "snapshots"]);
    assert_eq!(hub.take_asked().len(), 1 + needed.len());

    assert_eq!(machine.pull(&[]), folder);
    let asked = hub.take_asked();
    assert!(asked.len() == 1 && is_listing(&asked[0]), "a second pull asks only what there is: {asked:?}");

    let output = machine.mambo(&["pull", "org/name", "--include", "spiece.model", "--json"]);
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((facts["commit"].as_str(), facts["downloaded"].as_u64()), (Some(COMMIT), Some(6)), "{facts}");
    assert_eq!(facts["files"][2]["digest"]["sha256"], weights().digits());
    assert!(folder.join("spiece.model").exists() && !folder.join("pytorch_model.bin").exists());
}

#[test]
fn a_killed_download_goes_on_where_it_stopped() {
    const BEFORE: usize = 1_000_000;
    let hub = LoopbackHub::with(files());
    let machine = Machine::new(&hub);
    hub.behaviour().stall_after = Some(BEFORE);
    let mut child = machine.command(&["pull", "org/name"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while std::fs::metadata(machine.partial()).map_or(0, |facts| facts.len()) < BEFORE as u64 {
        assert!(started.elapsed() < Duration::from_secs(60), "the first part should have come");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!machine.repository().join("snapshots").exists() && !machine.repository().join("refs").exists());
    hub.take_asked();

    hub.behaviour().stall_after = None;
    let folder = machine.pull(&[]);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights().content);
    let asked: Vec<Asked> = hub.take_asked().into_iter().filter(|a| a.path.ends_with("model.safetensors")).collect();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].from, asked[0].sent), (Some(BEFORE), WEIGHTS - BEFORE), "what was here is not sent again");
    assert!(!machine.partial().exists());
}

#[test]
fn a_cut_connection_is_taken_up_again_in_the_same_run() {
    for (ignores_ranges, sent) in [(false, WEIGHTS - 700_000), (true, WEIGHTS)] {
        let hub = LoopbackHub::with(files());
        let machine = Machine::new(&hub);
        hub.behaviour().cut_after = Some(700_000);
        hub.behaviour().ignores_ranges = ignores_ranges;
        let folder = machine.pull(&[]);
        assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights().content);
        let asked: Vec<Asked> =
            hub.take_asked().into_iter().filter(|a| a.path.ends_with("model.safetensors")).collect();
        let parts: Vec<_> = asked.iter().map(|asked| (asked.from, asked.sent)).collect();
        assert_eq!(parts, [(None, 700_000), (Some(700_000), sent)]);
    }
}

#[test]
fn content_with_another_checksum_is_refused_and_not_kept() {
    let hub = LoopbackHub::with(files());
    let machine = Machine::new(&hub);
    hub.behaviour().alters = true;
    let said = machine.refused(&[]);
    for word in ["model.safetensors", "checksum", "expected", &weights().digits(), "found"] {
        assert!(said.contains(word), "{said} should mention {word}");
    }
    assert!(below(&machine.repository().join("snapshots")).is_empty());
    assert!(!machine.repository().join("refs").exists());
    let blobs = below(&machine.repository().join("blobs"));
    assert!(!blobs.iter().any(|name| name.contains(&weights().digits())), "{blobs:?}");

    // What a power cut left of an earlier download is no reason to give up.
    hub.behaviour().alters = false;
    std::fs::write(machine.partial(), vec![0; 5000]).unwrap();
    let folder = machine.pull(&[]);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights().content);
}

#[test]
fn a_size_in_a_listing_is_only_a_claim() {
    for claim in [u64::MAX, WEIGHTS as u64 + 1, 10] {
        let hub = LoopbackHub::with(vec![HubFile { listed_size: Some(claim), ..weights() }]);
        let machine = Machine::new(&hub);
        let said = machine.refused(&[]);
        assert!(
            said.contains("model.safetensors") && (said.contains("bytes came") || said.contains("checksum")),
            "{said}"
        );
        assert!(!machine.repository().join("snapshots").exists());
    }
}

#[test]
fn offline_uses_what_is_here_and_nothing_else() {
    let hub = LoopbackHub::with(files());
    let machine = Machine::new(&hub);
    let said = machine.refused(&["--offline"]);
    assert!(said.contains("org/name") && said.contains("hf/hub") && said.contains("--offline"), "{said}");
    let folder = machine.pull(&[]);
    hub.take_asked();
    assert_eq!(machine.pull(&["--offline"]), folder);
    assert_eq!(machine.pull(&["--offline", "--revision", COMMIT, "-o", "copy"]), Path::new("copy"));
    assert_eq!(below(&machine.folder.path().join("copy")), below(&folder));
    let output = machine.command(&["pull", "org/name", "--json"]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(facts["files"][2]["digest"]["sha256"], weights().digits());
    // A snapshot that lost its weights is no whole one.
    std::fs::remove_file(machine.repository().join("blobs").join(weights().digits())).unwrap();
    let said = machine.refused(&["--offline"]);
    assert!(said.contains("model.safetensors"), "{said}");
    assert_eq!(hub.take_asked(), []);
}

#[test]
fn a_listing_with_a_path_that_escapes_is_refused_whole() {
    for path in ["../evil.safetensors", "/evil.safetensors", "a/../../../evil.safetensors", "..\\\\evil.safetensors"] {
        let hub = LoopbackHub::with([files(), vec![HubFile::small(path, "evil")]].concat());
        let machine = Machine::new(&hub);
        let said = machine.refused(&["-o", "out"]);
        assert!(said.contains("evil.safetensors") && said.contains("leaves its folder"), "{said}");
        assert!(below(machine.folder.path()).is_empty(), "{path}");
    }
    let hub = LoopbackHub::with(files());
    let said = Machine::new(&hub).refused(&["--revision", "../../x"]);
    assert!(said.contains("--revision") && hub.take_asked().is_empty(), "{said}");
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_the_host_of_large_files() {
    let storage = LoopbackHub::start("localhost", Behaviour { files: files(), ..Behaviour::default() });
    let hub = LoopbackHub::with(files());
    hub.behaviour().storage.clone_from(&storage.address);
    let machine = Machine::new(&hub);
    let output = machine.command(&["-vv", "pull", "org/name"]).env("HF_TOKEN", "hf_secret").output().unwrap();
    assert!(output.status.success(), "{}", error(&output));
    assert!(!error(&output).contains("hf_secret"));
    let sent = |asked: &Asked| asked.authorization.as_deref() == Some("Bearer hf_secret");
    let asked = hub.take_asked();
    assert!(asked.iter().all(sent), "{asked:?}");
    assert!(asked.iter().any(|asked| asked.path == "/kept/text/tokenizer.json"), "a redirect at the hub is followed");
    let stored = storage.take_asked();
    assert_eq!(stored.len(), 1);
    assert_eq!((stored[0].path.as_str(), stored[0].authorization.as_deref()), ("/stored/model.safetensors", None));
}

#[test]
fn refusals_say_what_to_do() {
    let hub = LoopbackHub::with(files());
    let machine = Machine::new(&hub);
    let cases: [(u16, &'static str, bool, &[&str]); 7] = [
        (404, "RepoNotFound", false, &["no repository org/name", "private", "HF_TOKEN"]),
        (404, "", false, &["no repository org/name"]),
        (401, "", false, &["no repository org/name", "private", "HF_TOKEN"]),
        (401, "", true, &["401", "HF_TOKEN", "as the test wants"]),
        (403, "GatedRepo", true, &["403", "accept", "/org/name", "HF_TOKEN"]),
        (404, "RevisionNotFound", false, &["no revision \"main\"", "--revision"]),
        (418, "", false, &["418", "as the test wants"]),
    ];
    for (status, code, with_token, words) in cases {
        hub.behaviour().refusal = Some((status, code));
        let mut command = machine.command(&["pull", "org/name"]);
        if with_token {
            command.env("HF_TOKEN", "hf_secret");
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        for word in words {
            assert!(error(&output).contains(word), "{status} {code}: {} should mention {word}", error(&output));
        }
    }
    assert!(below(machine.folder.path()).is_empty());

    // A port that nothing listens at.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output =
        machine.command(&["pull", "org/name"]).env("HF_ENDPOINT", format!("http://{closed}")).output().unwrap();
    let said = error(&output);
    assert!(output.status.code() == Some(1) && said.contains("network") && said.contains("--offline"), "{said}");

    hub.behaviour().refusal = None;
    hub.behaviour().files.retain(|file| !file.path.ends_with(".safetensors"));
    let said = machine.refused(&[]);
    assert!(said.contains("pytorch_model.bin") && said.contains("--include"), "{said}");
}

#[test]
fn an_output_folder_gets_plain_files_and_loses_none() {
    let hub = LoopbackHub::with(files());
    let machine = Machine::new(&hub);
    let out = machine.folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("config.json"), "mine").unwrap();
    let said = machine.refused(&["-o", "out"]);
    assert!(said.contains("config.json") && said.contains("--force"), "{said}");
    assert!(hub.take_asked().iter().all(is_listing), "said before anything is downloaded");
    assert_eq!(machine.pull(&["-o", "out", "--force"]), Path::new("out"));
    assert_eq!(below(&out), ["README.md", "config.json", "model.safetensors", "text/tokenizer.json"]);
    assert_eq!(std::fs::read(out.join("config.json")).unwrap(), b"{}");
    assert!(out.join("model.safetensors").symlink_metadata().unwrap().is_file(), "a copy, no link");
    // The same content is nothing to overwrite.
    std::fs::remove_file(out.join("README.md")).unwrap();
    machine.pull(&["-o", "out"]);
    assert!(out.join("README.md").exists());
}

#[test]
fn all_parts_of_sharded_weights_come() {
    let index = |parts: &[&str]| {
        let map: Vec<String> = parts.iter().enumerate().map(|(n, part)| format!("\"tensor.{n}\":\"{part}\"")).collect();
        HubFile::small("model.safetensors.index.json", format!("{{\"weight_map\":{{{}}}}}", map.join(",")))
    };
    let parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut files: Vec<HubFile> = parts.iter().map(|&part| HubFile::large(part, part)).collect();
    files.push(index(&parts));
    let hub = LoopbackHub::with(files);
    let machine = Machine::new(&hub);
    assert_eq!(below(&machine.pull(&[])), [parts[0], parts[1], "model.safetensors.index.json"]);

    hub.behaviour().files.remove(1);
    let machine = Machine::new(&hub);
    let said = machine.refused(&[]);
    assert!(said.contains(parts[1]) && said.contains("index.json"), "{said}");
    assert!(!machine.repository().join("snapshots").exists());
}

#[test]
fn the_name_of_a_pulled_repository_stands_for_its_folder() {
    let experiment = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/tiny.toml");
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/crates/model/tests/golden/ssm_ttm.ckpt");
    let hub = LoopbackHub::with(Vec::new());
    let machine = Machine::new(&hub);
    let output = machine.mambo(&["inspect", "org/name"]);
    let said = error(&output);
    assert!(output.status.code() == Some(1) && said.contains("mambo pull org/name"), "{said}");
    assert!(machine.mambo(&["import", "ssm-ttm", golden, "-o", "made"]).status.success());
    for name in ["lm.toml", "lm.safetensors"] {
        let content = std::fs::read(machine.folder.path().join("made").join(name)).unwrap();
        hub.behaviour().files.push(HubFile::large(name, content));
    }
    machine.pull(&[]);
    hub.take_asked();
    let output = machine.mambo(&["inspect", "org/name", "--json"]);
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(facts["kind"], "model folder");
    // The folder is found, and what it lacks is said; no network is asked for it.
    for arguments in [
        &["generate", "x", "--model", "org/name"][..],
        &["prepare", "corpus", "--codec", "org/name", "--text", "org/name"],
        &["eval", "codec", "org/name", "--corpus", "corpus"],
        &["train", "lm", experiment, "-o", "run", "--codec", "org/name"],
        &["eval", "model", "org/name", "--corpus", "corpus", "--shards", "shards"],
    ] {
        let output = machine.mambo(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(error(&output).contains(COMMIT), "{arguments:?}: {}", error(&output));
    }
    assert_eq!(hub.take_asked(), []);
    // A folder of that name comes first.
    std::fs::create_dir_all(machine.folder.path().join("org/name")).unwrap();
    assert!(error(&machine.mambo(&["inspect", "org/name"])).contains("org/name: a folder without"));
}
