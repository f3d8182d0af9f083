//! Link settings: only the entry point is exported, and the library stays mapped.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
