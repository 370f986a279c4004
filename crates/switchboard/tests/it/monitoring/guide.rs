//! The Prometheus configurations in docs/operations.md are valid.

use std::fs;

use super::promtool;

const GUIDE: &str = include_str!("../../../../../docs/operations.md");

#[test]
fn promtool_accepts_every_scrape_configuration_of_the_guide() {
    let blocks = GUIDE.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let configurations: Vec<&str> =
        blocks.filter(|block| block.contains("scrape_configs:")).collect();
    // Open, on a separate port, and with a token.
    assert_eq!(configurations.len(), 3);
    let file = tempfile::NamedTempFile::new().unwrap();
    for configuration in configurations {
        assert!(
            configuration.contains("job_name: switchboard"),
            "alerts select it: {configuration}"
        );
        fs::write(&file, configuration).unwrap();
        promtool(&format!("check config --syntax-only {}", file.path().display()), "");
    }
}
