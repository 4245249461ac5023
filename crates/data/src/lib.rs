//! Corpus: a folder of music becomes captioned token shards.
