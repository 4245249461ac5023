//! Model repositories of the Hugging Face hub, brought to this machine and found here again.
//!
//! What the hub lists is read ([`Listing`]), files are chosen ([`Choice`]), each is downloaded beside its place,
//! checked and renamed, and only a whole set becomes a snapshot. The folders are those of the hub's Python tools, so
//! that nothing is downloaded twice by the two.
//!
//! The crate `hf-hub` 1.0 has the same cache layout, but starts a cut download over, checks no checksums, and brings
//! some 230 crates and a TLS library that needs CMake. `ureq` with `rustls` over `ring` is a tenth of that and needs the
//! C compiler that Mambo needs anyway; the rules of the cache are the few pages here.

mod cache;
mod choice;
mod client;
mod digest;
mod download;
mod error;
mod listing;
mod name;
mod pull;
mod settings;

pub use cache::Cache;
pub use choice::Choice;
pub use digest::Digest;
pub use error::HubError;
pub use listing::{Listed, Listing};
pub use name::Repository;
pub use pull::{Progress, Pulled, Request, pull};
pub use settings::{Settings, Token};
