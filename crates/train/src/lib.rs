//! Learning: the training loops of codec and language model.
