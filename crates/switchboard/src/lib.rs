//! Switchboard: a self-hosted broker for messages between devices.

pub mod config;
