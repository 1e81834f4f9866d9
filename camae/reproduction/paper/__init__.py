"""The paper's systems on one screen: its Tables 2-5 and Figures 2, 3, 5, 6 from what was run (`camae paper`)."""
