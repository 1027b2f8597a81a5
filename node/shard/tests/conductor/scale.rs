//! A thousand members, ten thousand shards.
