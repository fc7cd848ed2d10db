"""The page at `/`: HTML, a style sheet and ES modules, served as they lie here, without a framework or a build step."""
