"""From a kernel's text to running code: compiler, object cache, libraries, threads."""
