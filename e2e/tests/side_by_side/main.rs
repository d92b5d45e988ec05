//! Tests that leave the cluster as it is for everybody else, and so run side by side.

mod bad_input;
mod columns;
mod content;
mod deletion;
mod identity;
mod operations_page;
mod order;
mod pod_security;
mod ports;
mod rights;
mod strangers;
mod tenancy;
mod transfers;
