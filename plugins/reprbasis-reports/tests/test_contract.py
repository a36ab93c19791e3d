from reprbasis.testing import ReporterContract


class TestRich(ReporterContract):
    name, config = "rich", {"after": 0.0, "every": 0.0}


class TestHtml(ReporterContract):
    name = "html"


class TestMarkdown(ReporterContract):
    name = "markdown"
