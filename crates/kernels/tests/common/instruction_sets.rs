//! Every law of a test program again under the narrower instruction sets.

/// Runs this test program anew with each set but the widest in the variable `limit`, without the test `caller`.
pub fn repeat_without(caller: &str, limit: &str) {
    for set in ["portable", "avx2"] {
        let program = std::env::current_exe().unwrap();
        let out = std::process::Command::new(program).args(["--skip", caller]).env(limit, set).output();
        let out = out.unwrap();
        assert!(out.status.success(), "{set}: {}", String::from_utf8_lossy(&out.stdout));
    }
}
