"""The page that `sdengine bench report` makes of records of the suite."""
