//! Playing while it is made: WAV piped into whatever player the system has.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// Players that read WAV from standard input, in order of preference.
const PLAYERS: [(&str, &[&str]); 6] = [
    ("pw-cat", &["-p", "-"]),
    ("paplay", &[]),
    ("aplay", &["-q", "-"]),
    ("play", &["-q", "-t", "wav", "-"]),
    ("ffplay", &["-nodisp", "-autoexit", "-loglevel", "error", "-"]),
    ("mpv", &["--no-video", "--really-quiet", "-"]),
];

/// Starts the first player found; its standard input takes WAV.
pub fn start() -> Result<Child> {
    for (name, arguments) in PLAYERS {
        match Command::new(name).args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).spawn() {
            Ok(child) => return Ok(child),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot start the player {name}")),
        }
    }
    let names: Vec<&str> = PLAYERS.iter().map(|(name, _)| *name).collect();
    bail!("--play found no player; install one of {}, or leave --play out and open the file", names.join(", "))
}
