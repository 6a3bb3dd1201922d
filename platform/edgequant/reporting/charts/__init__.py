"""Small charts as SVG that stand in a page: they need no script and no network, print, and follow the page's theme."""
