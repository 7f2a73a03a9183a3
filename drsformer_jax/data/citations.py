"""The papers of the datasets, as BibTeX."""

YANG = """@inproceedings{yang2017deep,
  title={Deep Joint Rain Detection and Removal from a Single Image},
  author={Yang, Wenhan and Tan, Robby T. and Feng, Jiashi and Liu, Jiaying and Guo, Zongming and
    Yan, Shuicheng},
  booktitle={CVPR},
  year={2017}
}"""
ZHANG = """@inproceedings{zhang2018density,
  title={Density-aware Single Image De-raining using a Multi-stream Dense Network},
  author={Zhang, He and Patel, Vishal M.},
  booktitle={CVPR},
  year={2018}
}"""
FU = """@inproceedings{fu2017removing,
  title={Removing Rain from Single Images via a Deep Detail Network},
  author={Fu, Xueyang and Huang, Jiabin and Zeng, Delu and Huang, Yue and Ding, Xinghao and
    Paisley, John},
  booktitle={CVPR},
  year={2017}
}"""
WANG = """@inproceedings{wang2019spatial,
  title={Spatial Attentive Single-Image Deraining with a High Quality Real Rain Dataset},
  author={Wang, Tianyu and Yang, Xin and Xu, Ke and Chen, Shaozhe and Zhang, Qiang and
    Lau, Rynson W.H.},
  booktitle={CVPR},
  year={2019}
}"""
JIANG = """@inproceedings{jiang2020multi,
  title={Multi-Scale Progressive Fusion Network for Single Image Deraining},
  author={Jiang, Kui and Wang, Zhongyuan and Yi, Peng and Chen, Chen and Huang, Baojin and
    Luo, Yimin and Ma, Jiayi and Jiang, Junjun},
  booktitle={CVPR},
  year={2020}
}"""
