//! Networks: codec, language model, text encoder, tagger.
