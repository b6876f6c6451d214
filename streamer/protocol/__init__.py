"""The wire contract: messages, frames, documents. Pure."""
